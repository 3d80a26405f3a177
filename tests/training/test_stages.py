"""What trains in each stage and what does not, through the real command line, optimizer and 4-bit weights."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fakes.runs import EXPERIMENTS, UNDRAWN, bits_of, fit, losses_and_gradients, make_data, recorder_of, shallow_hf
from safetensors.torch import load_file, save_file

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.evaluation.evaluator.model import load_subject
from scaleearth_pl.loading.model import load_model
from scaleearth_pl.loading.settings import read_config
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.gsd_head import GsdHeadConfig
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth
from scaleearth_pl.training.stage2 import Stage2, refuse_stale_stage1, without_links

RECORD = ("--trainer.callbacks+=fakes.runs.Recorder", "--trainer.callbacks.gradients=true", *UNDRAWN)
STEPS = 4


@pytest.fixture(scope="module")
def stage2(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four steps with a validation after the second."""
    validate = ("--trainer.val_check_interval", "2")
    return fit("stage2", fake_corpus, tmp_path_factory.mktemp("runs"), *RECORD, *validate, steps=STEPS)


@pytest.fixture(scope="module")
def before(fake_corpus: Path) -> ScaleEarth:
    """Stage 2's model before its first step (SSE-U's start differs: it is drawn from the run's seed)."""
    config = BackboneConfig(quantise="nf4", source=str(shallow_hf(fake_corpus)))
    backbone = build_backbone(config, token_ids=make_data(fake_corpus).processor.token_ids)
    return ScaleEarth(backbone=backbone, adapters=AdapterConfig(), head=GsdHeadConfig(texture=True, depth=3))


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_only_adapters_thresholds_and_head_train(stage2: Any) -> None:
    names = trained(stage2.model.model)
    kinds = ("lora_A.weight", "lora_B.weight", "gate.thresholds")
    assert all(name.endswith(kinds) or name.startswith("gsd_head.") for name in names)
    assert sum(name.endswith(kinds) for name in names) == 14 * 3
    groups = {g["name"]: g["lr"] for g in stage2.trainer.optimizers[0].param_groups}
    assert set(groups) == {"adapters", "thresholds", "sse_u"}
    in_groups = {id(p) for g in stage2.trainer.optimizers[0].param_groups for p in g["params"]}
    assert in_groups == {id(p) for p in stage2.model.parameters() if p.requires_grad}


def test_the_base_stays_to_the_bit_and_all_else_moves(stage2: Any, before: ScaleEarth) -> None:
    first, last = bits_of(before), bits_of(stage2.model.model)
    assert first.keys() == last.keys()
    changed = {name for name in first if not first[name].equal(last[name])}
    assert changed == trained(before)


def test_every_trained_tensor_gets_gradient_in_every_step(stage2: Any) -> None:
    """But for A and the thresholds in the first step, where B is zero; a validation between steps changes nothing."""
    for step, gradients in enumerate(recorder_of(stage2).gradients):
        silent = {name for name, gradient in gradients.items() if not bool((gradient != 0).any())}
        waiting = {name for name in gradients if name.endswith(("lora_A.weight", "gate.thresholds"))}
        assert silent == (waiting if step == 0 else set())


def test_a_step_has_the_gradient_of_its_mean_loss(stage2: Any, before: ScaleEarth) -> None:
    """Its size too: with another factor AdamW would train the same weights, and each rank of two would agree."""
    report = recorder_of(stage2).reports[0]
    (vlm, _), gradients = losses_and_gradients(before, stage2.datamodule.step_batch(0), predicted_share=0.0)
    norm = torch.stack([gradient.norm() for name, gradient in gradients.items() if "lora_" in name]).norm()
    assert float(report.vlm_loss) == pytest.approx(vlm, rel=1e-5)
    assert float(report.grad_norm["adapters"]) == pytest.approx(float(norm), rel=1e-4)


def test_the_prediction_gates_training_and_no_evaluation(stage2: Any, fake_corpus: Path, tmp_path: Path) -> None:
    """Share 1 from the first step, adapters that were trained, and a learning rate that leaves them as they are."""
    adapter = ("--model.init_args.adapter", str(stage2.run_folder / "adapter"), "--model.init_args.optim.lr", "1.0e-30")
    shares = {"train_predicted_share": 1.0, "warmup_share": 0.0, "ramp_share": 0.0}
    gated = [word for name, share in shares.items() for word in (f"--model.init_args.resolver.{name}", str(share))]
    cli = fit("stage2", fake_corpus, tmp_path, *adapter, *gated, *RECORD, steps=1)
    module, step = cli.model, cli.datamodule.step_batch(0)
    losses = [losses_and_gradients(module.model, step, predicted_share=share)[0] for share in (0.0, 1.0)]
    (measured, _), (predicted, _) = losses
    assert abs(predicted / measured - 1) > 1e-3
    assert float(recorder_of(cli).reports[0].vlm_loss) == pytest.approx(predicted, rel=1e-5)
    with torch.no_grad():
        for evaluate in (module.validation_step, module.test_step):
            report = evaluate(step, 0)["report"]
            assert float(report.vlm_loss_sum / report.n_supervised) == pytest.approx(measured, rel=1e-5)


def test_the_predicted_share_waits_and_rises_over_the_run() -> None:
    """Of ten steps: nothing for two, then a ramp of four to one half; nothing at all without SSE-U."""
    config = ResolverConfig(train_predicted_share=0.5, warmup_share=0.2, ramp_share=0.4)

    def share(step: int, head: Any) -> float:
        model = SimpleNamespace(gsd_head=head, resolver=Resolver(config))
        module: Any = SimpleNamespace(model=model, global_step=step, total_steps=10)
        return Stage2.predicted_share(module)

    assert [share(step, object()) for step in (1, 4, 9)] == pytest.approx([0.0, 0.25, 0.5])
    assert share(9, None) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_recipe_runs_in_its_own_precision_and_rounds_no_gsd(fake_corpus: Path, tmp_path: Path, stage: str) -> None:
    """Every other run here is tiny's, in fp32: what the recipes say themselves would first be tried on a GPU."""
    recipe = yaml.safe_load((EXPERIMENTS / f"{stage}.yaml").read_text())
    stated = ("--trainer.precision", recipe["trainer"]["precision"])
    stated += ("--model.init_args.backbone.dtype", recipe["model"]["init_args"]["backbone"]["dtype"])
    run = fit(stage, fake_corpus, tmp_path, *stated, *RECORD, steps=1)
    (report,) = recorder_of(run).reports
    assert bool(report.loss.isfinite())
    if report.log10_gsd is not None:
        assert report.log10_gsd.equal(torch.cat([m.log10_gsd_G for m in run.datamodule.step_batch(0).micro]))
        assert report.log10_gsd.dtype == torch.float32


def test_validation_leaves_training_as_it_was(stage2: Any) -> None:
    """bitsandbytes would repack 4-bit weights at the first forward without gradient, for a kernel without backward."""
    model, micro = stage2.model.model, stage2.datamodule.step_batch(0).micro[0]

    def gradients() -> list[torch.Tensor]:
        wanted = [p for p in model.parameters() if p.requires_grad]
        out = model.train()(micro)
        return list(torch.autograd.grad(out.ce_sum + out.nll_sum, wanted))

    first = gradients()
    with torch.no_grad():
        model.eval()(micro)
    assert all(a.equal(b) for a, b in zip(gradients(), first, strict=True))


def test_groups_have_their_own_rate_and_are_clipped_apart(fake_corpus: Path, tmp_path: Path) -> None:
    cli = fit("stage2", fake_corpus, tmp_path, *RECORD, "--model.init_args.optim.clip_norm", "0.01", steps=2)
    report, gradients = recorder_of(cli).reports[-1], recorder_of(cli).gradients[-1]
    assert report.lr["thresholds"] == report.lr["sse_u"] == pytest.approx(5 * report.lr["adapters"])
    for group, part in {"adapters": "lora_", "thresholds": "thresholds", "sse_u": "gsd_head"}.items():
        norm = torch.stack([g.norm() for name, g in gradients.items() if part in name]).norm()
        assert float(norm) == pytest.approx(min(0.01, float(report.grad_norm[group])), rel=1e-3)


def test_stage_1_trains_everything_and_ends_in_a_folder(fake_corpus: Path, tmp_path: Path) -> None:
    cli = fit("stage1", fake_corpus, tmp_path, *UNDRAWN, steps=1, whole=True)
    assert cli.model.model.gsd_head is None
    assert not cli.model.model.adapters
    start = build_backbone(BackboneConfig(), token_ids=cli.datamodule.processor.token_ids)
    first, last = bits_of(start), bits_of(cli.model.model.backbone)
    assert {name for name in first if first[name].equal(last[name])} == set()
    saved = build_backbone(
        BackboneConfig(source=str(cli.run_folder / "hf")), token_ids=cli.datamodule.processor.token_ids
    )
    assert all(bits.equal(last[name]) for name, bits in bits_of(saved).items())


def test_stage_1_refuses_weights_that_were_trained_on_other_ids(fake_corpus: Path, tmp_path: Path) -> None:
    words = (
        "--model.init_args.init_from",
        str(shallow_hf(fake_corpus)),
        "--data.tiny_vocab_size",
        "300",
        "--data.micro_token_budget",
        "900",
    )
    with pytest.raises(ConfigError, match=r"another tokenizer.*Remedy: --data.tokenizer .*hf"):
        fit("stage1", fake_corpus, tmp_path, *words, steps=1)


@pytest.mark.parametrize(("content", "fine"), [(None, True), ("an earlier build", False)])
def test_a_stage_1_of_another_build_of_the_corpus_is_refused(
    fake_corpus: Path, tmp_path: Path, content: str | None, fine: bool
) -> None:
    """Its training images may be test images now."""
    index = ShardIndex.load(fake_corpus)
    record = {"corpus": index.root.name, "corpus_hash": content or index.content_hash}
    refuse_stale_stage1(str(tmp_path / "hf"), index)  # a folder that is no run says nothing
    (tmp_path / "run.json").write_text(json.dumps(record))
    with nullcontext() if fine else pytest.raises(ConfigError, match="another build of this corpus"):
        refuse_stale_stage1(str(tmp_path / "hf"), index)


def test_the_run_folder_says_what_was_run(stage2: Any) -> None:
    record = json.loads((stage2.run_folder / "run.json").read_text())
    assert (record["stage"], record["size"], record["steps"], record["corpus"]) == ("stage2", "tiny", STEPS, "corpus")
    assert record["qas_per_second"] > 0
    gates = json.loads((stage2.run_folder / "gates.json").read_text())
    assert list(gates) == ["0.1", "1", "10", "30"]
    assert gates["0.1"]["object"] > gates["1"]["object"] > gates["10"]["object"]
    assert (stage2.run_folder.parent / "latest").resolve() == stage2.run_folder.resolve()


def test_an_adapter_names_the_version_that_it_was_trained_on(
    fake_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not `latest`, which moves on with the next stage 1; the path stays relative, so that runs can be moved."""
    versions = tmp_path / "runs/stage1"
    for name in ("v0", "v1"):
        shutil.copytree(shallow_hf(fake_corpus), versions / name / "hf")
    weights = versions / "v1/hf/model.safetensors"
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (versions / "latest").symlink_to("v0")
    monkeypatch.chdir(tmp_path)
    fit("stage2", fake_corpus, Path("runs"), "--model.init_args.init_from", "runs/stage1/latest/hf", *UNDRAWN, steps=1)
    (versions / "latest").unlink()
    (versions / "latest").symlink_to("v1")
    row = json.loads(Path("runs/stage2/latest/adapter/scaleearth.json").read_text())
    assert row["base_path"] == "runs/stage1/v0/hf"
    assert load_subject("runs/stage2/latest").model.adapters
    monkeypatch.chdir("/")
    assert load_subject(tmp_path / "runs/stage2/latest").model.adapters


def test_an_adapter_folder_carries_what_it_was_shown(fake_corpus: Path, tmp_path: Path) -> None:
    """Copied without its run, the baseline with GSD as text still gets that text."""
    base = ("--model.init_args.init_from", str(shallow_hf(fake_corpus)))
    fit("stage2", fake_corpus, tmp_path / "runs", *base, "--data.gsd_text", "metres", *UNDRAWN, steps=1)
    shutil.copytree(tmp_path / "runs/stage2/latest/adapter", tmp_path / "bare")
    loaded = load_model(tmp_path / "bare")
    trained = read_config(tmp_path / "runs/stage2/latest/config.yaml")["data"]
    assert asdict(loaded.settings) == {key: trained[key] for key in ("min_pixels", "max_pixels", "gsd_text")}
    assert loaded.processor.gsd_text == "metres"


def test_links_are_followed_below_the_folder_that_holds_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk/stage1/v0/hf").mkdir(parents=True)
    (tmp_path / "disk/stage1/latest").symlink_to("v0")
    (tmp_path / "work").mkdir()
    (tmp_path / "work/runs").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "work")
    assert without_links("runs/stage1/latest/hf") == "runs/stage1/v0/hf"
    assert without_links("../disk/stage1/latest/hf") == "../disk/stage1/v0/hf"
    assert without_links(str(tmp_path / "work/runs/stage1/latest/hf")) == str(tmp_path.resolve() / "disk/stage1/v0/hf")
