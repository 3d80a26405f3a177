"""Exported folders: PEFT in stock transformers answers as the gated model does; broken ones do not get out."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from serving_fakes import make_run, picture
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from scaleearth_pl import cli
from scaleearth_pl.core.errors import CheckpointError, ConfigError, GsdError
from scaleearth_pl.data.processor import Processor
from scaleearth_pl.data.tokenizer import load_tokenizer
from scaleearth_pl.loading.model import load_model
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.serving.bank import Bank, request_for
from scaleearth_pl.serving.engine import Assistant, Query
from scaleearth_pl.serving.export import export_bank, summary
from scaleearth_pl.serving.export_base import export_base
from scaleearth_pl.serving.fold import FoldScale, parse_grid
from scaleearth_pl.serving.verify import Verifier, check, check_keys, difference

# PEFT 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUESTIONS = ("Are there roads of 3 metres?", "Forest?")
GSDS_M = (0.1, 0.9, 20.0)


@pytest.fixture(scope="module")
def four_bit_run(fake_corpus, tmp_path_factory):
    """A run whose base is in 4-bit, as stage 2's is."""
    return make_run(tmp_path_factory.mktemp("nf4"), fake_corpus, quantise="nf4")


@pytest.fixture(scope="module")
def exported(four_bit_run, tmp_path_factory):
    """(folder of the base, folder of the bank, bank)."""
    out = tmp_path_factory.mktemp("exported")
    export_base(load_model(four_bit_run), out / "base")
    scales = [FoldScale(gsd_m=m) for m in GSDS_M]
    return out / "base", out / "bank", export_bank(load_model(four_bit_run), scales, out / "bank", base_name="base")


def test_stock_transformers_and_peft_answer_as_the_gated_model(four_bit_run, exported):
    """No line of ours between the folders and the answer: transformers' attention, cache and generate."""
    base, bank, _ = exported
    earth = Assistant.from_pretrained(four_bit_run, base=base, max_new_tokens=5)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    stock = PeftModel.from_pretrained(stock, bank / "gsd-0p1m", adapter_name="gsd-0p1m")
    for name in ("gsd-0p9m", "gsd-20m"):
        stock.load_adapter(bank / name, adapter_name=name)
    answers = set()
    for gsd_m in GSDS_M:
        stock.set_adapter(FoldScale(gsd_m=gsd_m).name)
        prepared = earth.prepare(Query(image=picture(1), questions=QUESTIONS, spoof_gsd_m=gsd_m))
        ours = [answer.text for answer in earth.run([prepared])[0]]
        assert ours == [stock_answer(stock, earth, prepared, number) for number in range(len(QUESTIONS))]
        answers.add(tuple(ours))
    assert len(answers) > 1


def stock_answer(stock, earth, prepared, number):
    prompt = (*prepared.tree.prefix, *prepared.tree.branches[number].prompt)
    ids = torch.tensor([prompt])
    row = stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == earth.processor.image_token_id).long(),
        pixel_values=prepared.processed.pixel_values_PD,
        image_grid_thw=torch.tensor([prepared.processed.grid]),
        max_new_tokens=5,
        do_sample=False,
    )[0, len(prompt) :].tolist()
    return earth._text(row[: row.index(earth.processor.end_id)] if earth.processor.end_id in row else row)


@pytest.mark.slow
def test_twenty_gsds_within_1e_5(four_bit_run, exported):
    """fp32, one dequantised base; without writing folders: 20 come from one grid, read back through PEFT."""
    loaded = load_model(four_bit_run, base=exported[0], precision="none")
    scales = [FoldScale(gsd_m=m) for m in np.geomspace(0.05, 50, 20)]
    bank = export_bank(loaded, scales, exported[0].parent / "twenty")
    assert max(e.difference_to_gated for e in bank.entries) <= 1e-5
    assert max(e.difference_absolute for e in bank.entries) <= 1e-5  # its logits are small; see docs/serving.md
    assert min(e.difference_to_base for e in bank.entries) > 1e-2
    assert len(list((exported[0].parent / "twenty").glob("*/adapter_model.safetensors"))) == 20


def test_bare_peft_folders(exported):
    _, folder, bank = exported
    for entry in bank.entries:
        files = sorted(p.name for p in (folder / entry.name).iterdir())
        assert files == ["adapter_config.json", "adapter_model.safetensors"]
        config = json.loads((folder / entry.name / "adapter_config.json").read_text())
        assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 7
        assert config["modules_to_save"] is None and config["base_model_name_or_path"] == "base"
        assert all(".language_model." in key for key in load_file(folder / entry.name / "adapter_model.safetensors"))


def test_bank_is_read_back_and_chooses_the_nearest(exported):
    _, folder, bank = exported
    again = Bank.read(folder)
    assert again == bank
    for gsd_m, name in ((0.1, "gsd-0p1m"), (0.4, "gsd-0p9m"), (8.0, "gsd-20m"), (0.25, "gsd-0p1m")):
        assert again.choose(gsd_m).name == name
    for gsd_m in (0.001, 900.0):
        with pytest.raises(GsdError, match="the bank serves"):
            again.choose(gsd_m)
    assert [e.policy for e in bank.policy_errors] == [
        "metadata, exact",
        "metadata, nominal",
        "predicted, median sigma",
        "predicted, 95th percentile",
        "fused, exact",
        "fused, nominal",
    ]
    errors = {e.policy: e.gate_error for e in bank.policy_errors}
    assert errors["metadata, exact"] < errors["metadata, nominal"] < errors["predicted, median sigma"]
    assert errors["predicted, median sigma"] < errors["predicted, 95th percentile"]
    assert "3 folded" in summary(bank, folder)


def test_a_sigma_axis_is_chosen_by_sigma(earth, tmp_path):
    sigmas, grid = (0.0, 0.3), parse_grid("0.3:3:0.5dex")
    scales = [FoldScale(gsd_m=m, sigma_log10=s) for s in sigmas for m in grid]
    bank = export_bank(earth.loaded, scales, tmp_path / "bank", verify=False)
    assert bank.choose(1.0, sigma_log10=0.28).sigma_log10 == 0.3
    assert bank.choose(1.0).sigma_log10 == 0.0
    assert len(bank.entries) == 6


def test_requests_carry_the_gsd_of_the_pixels_they_carry(exported):
    base, _, bank = exported
    processor = Processor(load_tokenizer(base), **bank.processor)
    image = picture(2, (300, 200))
    seen = processor.seen_size(*image.size)
    request = request_for(image, image.size, 0.1, bank, seen_size=seen)
    sent = Image.open(io.BytesIO(request.png))
    assert sent.size == seen == processor.seen_size(*sent.size)
    assert request.gsd_m == pytest.approx(0.1 * (300 * 200 / (seen[0] * seen[1])) ** 0.5)
    assert request.model == bank.choose(request.gsd_m).name


def test_three_ways_to_hold_the_same_base(four_bit_run, exported):
    """4-bit, its values written out in memory, and those that export-base wrote: the same answers (fp32, CPU)."""
    ways = [{}, {"precision": "dequantised"}, {"base": exported[0]}]
    models = [Assistant.from_pretrained(four_bit_run, max_new_tokens=4, **way) for way in ways]
    kinds = [{type(layer.base).__name__ for layer in m.model.adapters.values()} for m in models]
    assert kinds == [{"Linear4bit"}, {"DequantisedLinear"}, {"Linear"}]
    asked = [[a.text for a in m.ask(picture(1), list(QUESTIONS), spoof_gsd_m=0.1)] for m in models]
    assert asked[0] == asked[1] == asked[2]
    with pytest.raises(ConfigError, match="not quantised again"):
        load_model(four_bit_run, base=exported[0], precision="nf4")


def test_the_base_is_known_by_its_origin(four_bit_run, fake_run, exported, tmp_path):
    base = exported[0]
    assert load_model(four_bit_run, base=base, precision="none").base == str(base)
    origin = json.loads((base / "scaleearth_base.json").read_text())
    assert origin["n_four_bit"] > 0 and origin["gap"] < 1e-3
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "scaleearth_base.json").write_text(json.dumps({**origin, "weights_hash": "0" * 64}))
    with pytest.raises(CheckpointError, match="other weights"):
        load_model(four_bit_run, base=other, precision="none")


def test_the_chat_template_is_the_prompt_of_training(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported[0])
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Forest?"}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    processor = Processor(load_tokenizer(exported[0]), min_pixels=1024, max_pixels=16384)
    assert tuple(ids) == (*processor.prefix([1], None), *processor.prompt("Forest?"))


def test_a_folder_that_is_not_the_model_is_refused(earth, tmp_path):
    verifier, scale = Verifier(earth), FoldScale(gsd_m=0.3)
    export_bank(earth.loaded, [scale], tmp_path / "bank", verify=False)
    folder = tmp_path / "bank" / scale.name
    (right,) = verifier.compare([folder], [scale])
    check(right, folder, tolerance=1e-5)
    assert right.to_gated <= right.to_gated_absolute <= right.to_gated * float(verifier.gated(scale).abs().max() + 1)
    (wrong,) = verifier.compare([folder], [FoldScale(gsd_m=3.0)])
    with pytest.raises(CheckpointError, match="not the gated model"):
        check(wrong, folder, tolerance=1e-5)
    with pytest.raises(CheckpointError, match="changes nothing"):
        check(replace(right, to_base=1e-6), folder, tolerance=1e-5)


def test_comparing_leaves_the_model_as_it_was(earth, tmp_path):
    before = earth.ask(picture(), list(QUESTIONS), gsd_m=1.0)
    logits = Verifier(earth).gated(FoldScale(gsd_m=1.0))
    export_bank(earth.loaded, [FoldScale(gsd_m=1.0)], tmp_path / "bank")
    assert earth.ask(picture(), list(QUESTIONS), gsd_m=1.0) == before
    assert torch.equal(Verifier(earth).gated(FoldScale(gsd_m=1.0)), logits)


def test_keys_without_language_model_are_caught(exported, tmp_path):
    """The trap itself: PEFT loads such a file with a warning at most, and nothing changes."""
    with pytest.raises(CheckpointError, match="activate nothing"):
        check_keys(tmp_path, ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])


def test_an_untrained_adapter_is_not_exported(fake_corpus, tmp_path):
    run = make_run(tmp_path, fake_corpus, noise=0.0)
    with pytest.raises(CheckpointError, match="never trained"):
        export_bank(load_model(run), [FoldScale(gsd_m=1.0)], tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_a_gate_trained_at_one_gsd_is_folded_at_that_one_alone(earth, tmp_path, monkeypatch):
    """Baseline constant_gate: elsewhere the folder would verify, and be a model that nobody evaluated."""
    monkeypatch.setattr(earth.model, "resolver", Resolver(ResolverConfig(policy="spoof", spoof_gsd_m=2.0)))
    for scale in (FoldScale(gsd_m=0.5), FoldScale(gsd_m=2.0, sigma_log10=0.3)):
        with pytest.raises(ConfigError, match=r"trained at 2 m alone|told no sigma"):
            export_bank(earth.loaded, [FoldScale(gsd_m=2.0), scale], tmp_path / "bank", verify=False)
    assert not (tmp_path / "bank").exists()
    bank = export_bank(earth.loaded, [FoldScale(gsd_m=2.0)], tmp_path / "bank")
    assert bank.entries[0].difference_to_gated <= 1e-5
    assert {bank.choose(gsd_m).name for gsd_m in (0.05, 2.0, 300.0)} == {"gsd-2m"}  # `ask` tells that gate 2 m always
    assert not bank.policy_errors and "2 m alone" in summary(bank, tmp_path)
    assert Bank.read(tmp_path / "bank") == bank


def test_the_command_says_at_which_gsd_such_a_gate_is_folded(earth, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(earth.model, "resolver", Resolver(ResolverConfig(policy="spoof", spoof_gsd_m=2.0)))
    monkeypatch.setattr("scaleearth_pl.serving.export.run_of", lambda args: earth.loaded)
    assert cli.run(["export", "--gsd-m", "0.5", "--out", str(tmp_path / "bank")]) == 2
    error = capsys.readouterr().err
    assert "0.5" in error and "--gsd-m 2," in " ".join(error.split())


def test_a_gate_that_is_told_no_sigma_has_no_sigma_axis(earth, tmp_path, monkeypatch):
    monkeypatch.setattr(earth.model, "resolver", Resolver(ResolverConfig(marginal=False)))
    with pytest.raises(ConfigError, match="told no sigma"):
        export_bank(earth.loaded, [FoldScale(gsd_m=1.0, sigma_log10=0.3)], tmp_path / "bank", verify=False)
    assert not export_bank(earth.loaded, [FoldScale(gsd_m=1.0)], tmp_path / "bank", verify=False).policy_errors


def test_a_model_that_reads_the_gsd_in_its_prompt_is_not_folded(fake_corpus, tmp_path, capsys):
    """Baseline gsd_text: no folder holds the text, and no client of a folder sends it."""
    run = make_run(tmp_path, fake_corpus, head=False, gate=GateConfig(kind="open"), gsd_text="metres")
    assert cli.run(["export", str(run), "--gsd-m", "1", "--out", str(tmp_path / "bank")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "reads the GSD in its prompt" in error and "scaleearth serve" in error
    assert not (tmp_path / "bank").exists()
    assert cli.run(["export", str(run), "--native", "--out", str(tmp_path / "native")]) == 0


def test_half_precision_keeps_its_own_tolerance(earth, tmp_path):
    bank = export_bank(earth.loaded, [FoldScale(gsd_m=1.0)], tmp_path / "bank", dtype="bfloat16")
    tensors = load_file(tmp_path / "bank" / "gsd-1m" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert 1e-5 < bank.entries[0].difference_to_gated <= bank.tolerance


def test_a_backbone_in_half_precision_is_compared_as_such(fake_corpus, tmp_path):
    """The larger sizes compute in bfloat16: folder and gated model then agree to its rounding, whatever the folder's dtype."""
    loaded = load_model(make_run(tmp_path, fake_corpus, dtype="bfloat16"))
    bank = export_bank(loaded, [FoldScale(gsd_m=1.0)], tmp_path / "bank")
    (entry,) = bank.entries
    assert bank.dtype == "float32" and 1e-5 < entry.difference_to_gated <= bank.tolerance == 5e-2
    assert entry.difference_to_base > 2 * bank.tolerance  # another adapter, or none, is still told apart
    (wrong,) = Verifier(Assistant(loaded)).compare([tmp_path / "bank" / "gsd-1m"], [FoldScale(gsd_m=30.0)])
    with pytest.raises(CheckpointError, match="not the gated model"):
        check(wrong, tmp_path, tolerance=bank.tolerance)


def test_a_small_update_is_an_update_in_half_precision_too(fake_corpus, tmp_path):
    """Trained adapters move logits by less than half of the largest, and far more than nothing."""
    loaded = load_model(make_run(tmp_path, fake_corpus, noise=0.01))
    bank = export_bank(loaded, [FoldScale(gsd_m=1.0)], tmp_path / "bank", dtype="bfloat16")
    assert 10 * bank.entries[0].difference_to_gated < bank.entries[0].difference_to_base < 10 * bank.tolerance


def test_targets_that_hold_something_else_are_left_alone(fake_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for command in (["--gsd-m", "1"], ["--native"]):
        status = cli.run(["export", str(fake_run), *command, "--out", str(tmp_path)])
        assert status == 2
    assert cli.run(["export-base", str(fake_run), "--out", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_target_without_a_name_is_refused(fake_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        assert cli.run(["export", str(fake_run), "--gsd-m", "1", "--no-verify", "--out", out]) == 2
        assert "needs a name" in capsys.readouterr().err


def test_commands(fake_run, earth, tmp_path, capsys):
    assert cli.run(["export", str(fake_run), "--gsd-m", "0.5", "--out", str(tmp_path / "one")]) == 0
    assert "1 folded" in capsys.readouterr().out
    assert cli.run(["export", str(fake_run), "--gsd-m", "2", "--no-verify", "--out", str(tmp_path / "one")]) == 0
    assert [p.name for p in (tmp_path / "one").iterdir() if p.is_dir()] == ["gsd-2m"]
    assert Bank.read(tmp_path / "one").entries[0].difference_to_gated is None
    assert cli.run(["export", str(fake_run), "--gsd-m", "-2", "--out", str(tmp_path / "two")]) == 2
    assert cli.run(["export", str(fake_run), "--gsd-m", "1", "--push-to", "a/b", "--out", str(tmp_path / "two")]) == 2
    assert not (tmp_path / "two").exists()
    with pytest.raises(ConfigError, match="one name"):
        export_bank(earth.loaded, [FoldScale(gsd_m=1.0), FoldScale(gsd_m=1.00001)], tmp_path / "two")


def test_how_to_fold_is_not_said_of_what_is_not_folded(tmp_path, capsys):
    for words in (["--sigma", "0.3"], ["--dtype", "bfloat16"], ["--no-verify"]):
        assert cli.run(["export", "no-such-run", "--native", *words, "--out", str(tmp_path / "out")]) == 2
        assert "--native folds nothing" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_cut_bank_is_refused(exported, tmp_path):
    for text in ("", "{}", '{"schema": "other/1"}', '{"schema": "scaleearth-bank/1", "entries": 3}'):
        (tmp_path / "bank.json").write_text(text)
        with pytest.raises(CheckpointError):
            Bank.read(tmp_path)


def test_difference_is_relative_to_large_logits_only():
    assert difference(torch.tensor([[0.5]]), torch.tensor([[0.25]])) == 0.25
    assert difference(torch.tensor([[50.0]]), torch.tensor([[25.0]])) == 1.0
