"""The adapter folder: read by us exactly, by PEFT as a plain LoRA, by nobody if anything is amiss."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from fakes.gates import bell
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from scaleearth_pl.core import files
from scaleearth_pl.core.errors import CheckpointError, DiskSpaceError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.model.adapter_io import (
    OUR_CONFIG,
    OUR_WEIGHTS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    AdapterFolder,
    AdapterMeta,
    apply_adapter,
    load_adapter,
    save_adapter,
)
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.gated_lora import LORA_TARGETS, AdapterConfig, GatedLoRALinear, ScaleState, attach
from scaleearth_pl.model.gsd_head import GsdHead, GsdHeadConfig
from scaleearth_pl.model.resolver import ResolverConfig

DIMS = (32, 24)
IDS = torch.arange(3, 15)[None]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """A random Qwen3-VL of two blocks."""
    text = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 24,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    torch.manual_seed(0)
    ids = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), range(46, 50)))
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids)).eval()


class Model:
    """What stage 2 holds: an attached copy of the base, its adapters, SSE-U, and their description."""

    def __init__(self, base: nn.Module, *, noise: float = 0.0, seed: int = 0, **gate: object) -> None:
        self.backbone, self.scale = copy.deepcopy(base), ScaleState()
        config = AdapterConfig(rank=6, lora_alpha=12, gate=GateConfig(**gate), seed=seed)
        self.adapters: dict[str, GatedLoRALinear] = attach(self.backbone, config, self.scale)
        torch.manual_seed(seed)
        self.head = GsdHead(GsdHeadConfig(hidden=8), DIMS)
        self.scale.set(torch.tensor([0.4]), torch.zeros(1), torch.zeros_like(IDS))
        self.meta = AdapterMeta(
            adapters=config,
            sse_u=self.head.config,
            sse_u_dims=DIMS,
            resolver=ResolverConfig(policy="fused"),
            base_path="runs/stage1/latest/hf",
            base_hash="0123",
            quantisation="none",
            commit="abc",
            extra={"steps": 7},
        )
        with torch.no_grad():
            for p in self.trained():
                p.add_(noise * torch.randn(p.shape))

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.backbone.parameters() if p.requires_grad] + list(self.head.parameters())

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.backbone(input_ids=IDS).logits

    def save(self, folder: Path) -> Path:
        save_adapter(folder, adapters=self.adapters, gsd_head_state=self.head.state_dict(), meta=self.meta)
        return folder

    def apply(self, loaded: AdapterFolder) -> None:
        apply_adapter(loaded, adapters=self.adapters, gsd_head=self.head)


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row))


# PEFT 0.21 asks transformers 5.23 for a property by its old name.
peft_asks_by_an_old_name = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

GATES = [
    {},
    {"share_thresholds": True, "learn_sharpness": True},
    {"kind": "open"},
    {"kind": "bucketed", "buckets": TierBoundaries(high_below_m=0.4, mid_below_m=4.0)},
]


@pytest.mark.parametrize("gate", GATES)
def test_a_folder_brings_back_every_bit_and_every_setting(base: nn.Module, tmp_path: Path, gate: dict) -> None:
    trained, fresh = Model(base, noise=0.3, **gate), Model(base, seed=5, **gate)
    loaded = load_adapter(trained.save(tmp_path / "adapter"))
    assert loaded.meta == trained.meta
    assert set(loaded.modules) == set(trained.adapters)
    assert not torch.equal(fresh.logits(), trained.logits())
    fresh.apply(loaded)
    assert all(torch.equal(a, b) for a, b in zip(fresh.trained(), trained.trained(), strict=True))
    assert torch.equal(fresh.logits(), trained.logits())


@peft_asks_by_an_old_name
def test_peft_reads_it_and_agrees_where_all_gates_are_open(base: nn.Module, tmp_path: Path) -> None:
    trained = Model(base, noise=0.3, kind="open")
    folder = trained.save(tmp_path / "adapter")
    keys = peft.utils.load_peft_weights(str(folder), device="cpu")
    assert len(keys) == 2 * 2 * 7
    assert all(".language_model." in key for key in keys)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()
    with torch.no_grad():
        logits = theirs(input_ids=IDS).logits
        plain = base(input_ids=IDS).logits
    assert (logits - trained.logits()).abs().max() < 1e-6
    assert (logits - plain).abs().max() > 1e-2


@peft_asks_by_an_old_name
def test_peft_sees_a_gated_adapter_with_all_gates_open(base: nn.Module, tmp_path: Path) -> None:
    gated, opened = Model(base, noise=0.3), Model(base, kind="open")
    folder = gated.save(tmp_path / "adapter")
    with torch.no_grad():
        for name, layer in opened.adapters.items():
            layer.lora_A.weight.copy_(gated.adapters[name].lora_A.weight)
            layer.lora_B.weight.copy_(gated.adapters[name].lora_B.weight)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()(input_ids=IDS).logits
    assert (theirs - opened.logits()).abs().max() < 1e-6
    assert (theirs - gated.logits()).abs().max() > 1e-3


def test_peft_config_is_what_servers_accept(base: nn.Module, tmp_path: Path) -> None:
    row = json.loads((Model(base).save(tmp_path / "a") / PEFT_CONFIG).read_text())
    assert row["target_modules"] == sorted(LORA_TARGETS)
    assert (row["r"], row["lora_alpha"], row["modules_to_save"]) == (6, 12, None)
    assert row["base_model_name_or_path"] == "runs/stage1/latest/hf"


def test_json_says_what_the_contract_asks(base: nn.Module, tmp_path: Path) -> None:
    row = json.loads((Model(base).save(tmp_path / "a") / OUR_CONFIG).read_text())
    assert row["schema"] == "scaleearth-adapter/1"
    assert row["adapters"]["gate"]["sharpness"] == 4.0
    assert row["thresholds"] == {"object": -0.3, "structure": 0.7, "semantic": 2.0}
    assert row["files"].keys() == {PEFT_CONFIG, PEFT_WEIGHTS, OUR_WEIGHTS}
    assert {"sse_u", "resolver", "base_path", "base_hash", "quantisation", "commit"} <= row.keys()


# -- what is amiss ----------------------------------------------------------------------------------------------

FIRST_A = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
FIRST_TAU = "gates.model.language_model.layers.0.self_attn.q_proj.thresholds"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (PEFT_WEIGHTS, lambda t: t.pop(FIRST_A), r"1 keys missing.*q_proj\.lora_A"),
        (PEFT_WEIGHTS, lambda t: t.update({FIRST_A.replace("q_proj", "z_proj"): t.pop(FIRST_A)}), r"2 keys missing"),
        (PEFT_WEIGHTS, lambda t: t.update({"extra": torch.zeros(1)}), r"not a LoRA matrix.*'extra'"),
        (PEFT_WEIGHTS, lambda t: t.update({FIRST_A: torch.zeros(5, 24)}), r"rank of .*q_proj\.lora_A.*5"),
        (PEFT_WEIGHTS, lambda t: t[FIRST_A].add_(1), "checksums"),
        (OUR_WEIGHTS, lambda t: t.pop(FIRST_TAU), r"1 keys missing.*thresholds"),
        (OUR_WEIGHTS, lambda t: t.update({FIRST_TAU: torch.zeros(7)}), r"q_proj\.thresholds.*7"),
        (OUR_WEIGHTS, lambda t: t.update({"gsd_head.first.w": t.pop("gsd_head.first.weight")}), "1 unexpected"),
    ],
)
def test_changed_tensors_are_refused(
    base: nn.Module, tmp_path: Path, file: str, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    folder = Model(base).save(tmp_path / "a")
    edit_tensors(folder / file, change)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema="scaleearth-adapter/0"), r"another schema.*adapter/0"),
        (lambda r: r.pop("resolver"), "missing or unexpected keys.*resolver"),
        (lambda r: r["adapters"].update(rank_pattern={}), "AdapterConfig.*rank_pattern"),
        (lambda r: r["adapters"]["gate"].update(sharpness=-1.0), "sharpness"),
        (lambda r: r["adapters"]["gate"].update(sharpness=5.0), "gate_values"),
        (lambda r: r["adapters"]["gate"].update(kind="open"), "14 unexpected"),
        (lambda r: r["adapters"]["gate"].update(kind="hard"), r"Literal.*gate\.kind.*'hard'"),
        (lambda r: r["resolver"].update(policy="Predicted"), r"Literal.*'fused'.*resolver\.policy.*'Predicted'"),
        (lambda r: r["resolver"].update(marginal=1), r"bool.*resolver\.marginal"),
        (lambda r: r["adapters"].update(rank="6"), r"int.*adapters\.rank.*'6'"),
        (lambda r: r["adapters"].update(targets=["q_proj", 7]), r"tuple.*adapters\.targets"),
        (lambda r: r["sse_u"].update(texture=None), r"bool.*sse_u\.texture"),
        (lambda r: r.update(resolver="fused"), r"ResolverConfig.*resolver.*'fused'"),
        (lambda r: r.update(gate_values=[0.5, "x"]), "gate_values"),
        (lambda r: r.update(sse_u=None), "unexpected.*gsd_head"),
        (lambda r: r["files"].clear(), "checksums"),
    ],
)
def test_changed_settings_are_refused(
    base: nn.Module, tmp_path: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    folder = Model(base).save(tmp_path / "a")
    edit_json(folder / OUR_CONFIG, change)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize("gate", GATES)
def test_an_adapter_of_another_formula_is_refused(
    base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: dict
) -> None:
    """The README's bell, after training under the paper's gate: tensors and settings fit, answers would not."""
    folder = Model(base, **gate).save(tmp_path / "a")

    monkeypatch.setattr("scaleearth_pl.model.gate.openness", bell)
    if gate.get("kind", "continuous") == "continuous":
        with pytest.raises(CheckpointError, match=r"another gate.*gate_values.*commit abc"):
            load_adapter(folder)
        edit_json(folder / OUR_CONFIG, lambda row: row.pop("gate_values"))  # as folders from before have none
    load_adapter(folder)
    load_adapter(Model(base, **gate).save(tmp_path / "b"))


@pytest.mark.parametrize("file", [PEFT_CONFIG, PEFT_WEIGHTS, OUR_WEIGHTS, OUR_CONFIG])
def test_missing_and_cut_files_are_refused(base: nn.Module, tmp_path: Path, file: str) -> None:
    folder = Model(base).save(tmp_path / "a")
    path = folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=file if file != PEFT_CONFIG else "checksums"):
        load_adapter(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"lacks a file.*{file}"):
        load_adapter(folder)


def test_another_base_is_refused(base: nn.Module, tmp_path: Path) -> None:
    folder = Model(base).save(tmp_path / "a")
    assert load_adapter(folder, base_hash="0123").meta.base_hash == "0123"
    with pytest.raises(CheckpointError, match="base_hash"):
        load_adapter(folder, base_hash="4567")


def test_another_model_is_refused_and_left_alone(base: nn.Module, tmp_path: Path) -> None:
    loaded = load_adapter(Model(base, noise=0.3).save(tmp_path / "a"))
    for other in (Model(base, sharpness=5.0), Model(base, kind="open"), Model(base, share_thresholds=True)):
        before = [p.detach().clone() for p in other.trained()]
        with pytest.raises(CheckpointError, match="gate of"):
            other.apply(loaded)
        assert all(torch.equal(p, b) for p, b in zip(other.trained(), before, strict=True))
    fewer = Model(base)
    fewer.adapters.popitem()
    with pytest.raises(CheckpointError, match="0 keys missing, 3 unexpected"):
        fewer.apply(loaded)
    with pytest.raises(CheckpointError, match="sse_u"):
        apply_adapter(loaded, adapters=Model(base).adapters, gsd_head=None)


def test_names_that_servers_would_ignore_are_not_written(base: nn.Module, tmp_path: Path) -> None:
    model = Model(base)
    model.adapters = {name.replace("language_model.", ""): layer for name, layer in model.adapters.items()}
    with pytest.raises(CheckpointError, match="language_model"):
        model.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# -- on the disk ------------------------------------------------------------------------------------------------


def test_writing_replaces_the_folder_whole_and_leaves_nothing_else(base: nn.Module, tmp_path: Path) -> None:
    folder = Model(base).save(tmp_path / "run" / "adapter")
    (folder / "stale.txt").write_text("of the old one")
    new = Model(base, noise=0.3)
    new.save(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]
    assert {p.name for p in folder.iterdir()} == {PEFT_CONFIG, PEFT_WEIGHTS, OUR_WEIGHTS, OUR_CONFIG}
    new.apply(load_adapter(folder))


def test_a_writer_that_dies_leaves_the_old_folder(
    base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Model(base).save(tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for victim in ("model.adapter_io.checksum", "core.files.put_in_place"):
        with monkeypatch.context() as patch:
            patch.setattr(f"scaleearth_pl.{victim}", lambda *args, **settings: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                Model(base, noise=0.3).save(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_lost_between_two_renames_is_pointed_out(base: nn.Module, tmp_path: Path) -> None:
    folder = Model(base).save(tmp_path / "adapter")
    folder.rename(tmp_path / ".adapter.previous")
    with pytest.raises(CheckpointError, match=r"rename .*\.adapter\.previous to adapter"):
        load_adapter(folder)


def test_a_full_disk_is_seen_before_writing(base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = files.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskSpaceError, match="bytes to write"):
        Model(base).save(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
