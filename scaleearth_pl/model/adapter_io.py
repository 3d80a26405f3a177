"""The `adapter/` folder: what stage 2 leaves behind and every other tool takes.

    adapter_config.json          PEFT's own description of the LoRA
    adapter_model.safetensors    A and B, unfolded, under PEFT's names
    scaleearth.safetensors       gate thresholds and SSE-U
    scaleearth.json              schema, every setting, base, values of the gate's formula, checksums of the three above

PEFT and everything that speaks PEFT can read the folder, and then sees the adapter *with all gates open*: thresholds
live in a file of their own because an extra key makes some servers raise. A folder for a server is folded at one GSD
first (A' = diag(h) A). Names keep `language_model`: without it some servers load the file and activate nothing.

`scaleearth.json` is complete and strict: every setting, no unknown one, checksums of the other three files, so that a
cut, mixed or edited folder is an error and not a slightly different model. How it gets to disk: `core/files.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.core.files import replacing_folder, write_json
from scaleearth_pl.model.adapter_files import (
    check_keys,
    check_same,
    check_tensors,
    checksum,
    parse_dataclass,
    read_json,
    read_tensors,
    write_tensors,
)
from scaleearth_pl.model.baselines import build_gate
from scaleearth_pl.model.gate import rank_tier_slices
from scaleearth_pl.model.gate_formula import FORMULA, formula_values, refuse_other_formula
from scaleearth_pl.model.gated_lora import AdapterConfig, GatedLoRALinear
from scaleearth_pl.model.gsd_head import GsdHead, GsdHeadConfig
from scaleearth_pl.model.resolver import ResolverConfig

ADAPTER_SCHEMA = "scaleearth-adapter/1"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OUR_WEIGHTS, OUR_CONFIG = "scaleearth.safetensors", "scaleearth.json"

_PEFT_KEY = re.compile(r"base_model\.model\.(?P<module>.+\.language_model\..+)\.(?P<which>lora_[AB]\.weight)")
_PARTS = ("gates.", "gsd_head.")
_SHARED = "shared"


@dataclass(frozen=True, kw_only=True)
class AdapterMeta:
    """Everything but the weights.

    Attributes:
        adapters: rank, lora_alpha, targets, gate.
        sse_u: SSE-U's settings; None for a model without it.
        sse_u_dims: widths of the feature levels that SSE-U reads.
        resolver: the policy that training used.
        base_path: folder or hub name of the backbone.
        base_hash: hash of its weights, as the caller computes it.
        quantisation: "none" or "nf4".
        commit: of this code.
        extra: whatever the experiment wants to remember, as JSON; never read here.
    """

    adapters: AdapterConfig
    sse_u: GsdHeadConfig | None
    sse_u_dims: tuple[int, ...]
    resolver: ResolverConfig
    base_path: str
    base_hash: str
    quantisation: str
    commit: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AdapterFolder:
    """A folder in memory. `lora` maps `<module>.lora_A.weight`, `gates` `<module or shared>.thresholds`."""

    path: Path
    meta: AdapterMeta
    lora: dict[str, Tensor]
    gates: dict[str, Tensor]
    gsd_head: dict[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules, relative to the backbone, in the file's (alphabetical) order."""
        return _modules(self.lora)


def save_adapter(
    folder: Path, *, adapters: Mapping[str, GatedLoRALinear], gsd_head_state: Mapping[str, Tensor], meta: AdapterMeta
) -> None:
    """Writes the folder, replacing it whole. Call it on one rank.

    Args:
        folder: target, such as `runs/stage2/0/adapter`; its parent is made.
        adapters: what `attach` returned.
        gsd_head_state: SSE-U's state dict; empty without SSE-U.
        meta: every setting.

    Raises:
        CheckpointError: module names without `language_model`, or layers that are not what `meta` says.
        DiskSpaceError: not enough room.
    """
    _check_layers(adapters, meta, folder)
    lora = {f"base_model.model.{key}": value for key, value in _lora_state(adapters).items()}
    _from_peft_keys(lora, folder / PEFT_WEIGHTS)
    gates = _gate_state(adapters, shared=meta.adapters.gate.share_thresholds)
    ours = _join(gates, gsd_head_state)
    with replacing_folder(folder, sum(t.nbytes for t in (*lora.values(), *ours.values()))) as new:
        write_tensors(new / PEFT_WEIGHTS, lora)
        write_tensors(new / OUR_WEIGHTS, ours)
        write_json(new / PEFT_CONFIG, _peft_config(meta))
        description = {"schema": ADAPTER_SCHEMA, **asdict(meta), "thresholds": _threshold_means(gates, meta)}
        description[FORMULA] = formula_values(meta.adapters)
        write_json(new / OUR_CONFIG, {**description, "files": _checksums(new)})


def load_adapter(folder: Path, *, base_hash: str | None = None) -> AdapterFolder:
    """Reads and checks a folder, on the host. With `base_hash`, only one that was trained on that base.

    Raises:
        CheckpointError: a file is missing, cut, altered or of another schema; a key is missing, unexpected or renamed;
            a tensor has another shape than the settings say; the base is another one; the gate's formula in
            `model/gate.py` is not the one that the adapter was trained under.
    """
    row = read_json(folder / OUR_CONFIG)
    if row.get("schema") != ADAPTER_SCHEMA:
        raise CheckpointError(
            "adapter of another schema",
            file=folder / OUR_CONFIG,
            field="schema",
            value=row.get("schema"),
            remedy=f"this version reads {ADAPTER_SCHEMA}; write it again with this version",
        )
    settings = {key: value for key, value in row.items() if key not in ("schema", "thresholds", "files", FORMULA)}
    meta: AdapterMeta = parse_dataclass(AdapterMeta, settings, folder / OUR_CONFIG)
    refuse_other_formula(
        "adapter was trained",
        row.get(FORMULA),
        meta.adapters,
        file=folder / OUR_CONFIG,
        writer=f" (commit {meta.commit})",
    )
    if base_hash is not None:
        check_same(folder / OUR_CONFIG, "base_hash", base_hash, meta.base_hash)
    lora = _from_peft_keys(read_tensors(folder / PEFT_WEIGHTS), folder / PEFT_WEIGHTS)
    for key, matrix in lora.items():
        check_same(folder / PEFT_WEIGHTS, f"rank of {key}", meta.adapters.rank, matrix.shape["lora_B" in key])
    ours = read_tensors(folder / OUR_WEIGHTS)
    check_tensors(ours, _expected_ours(meta, _modules(lora)), folder / OUR_WEIGHTS)
    if row.get("files") != _checksums(folder):
        raise CheckpointError(
            "files do not have the checksums that were written",
            file=folder,
            field="files",
            remedy="the folder was cut, edited, or mixed with another one; copy it again",
        )
    gates, gsd_head = ({k.removeprefix(p): v for k, v in ours.items() if k.startswith(p)} for p in _PARTS)
    return AdapterFolder(path=folder, meta=meta, lora=lora, gates=gates, gsd_head=gsd_head)


@torch.no_grad()
def apply_adapter(loaded: AdapterFolder, *, adapters: Mapping[str, GatedLoRALinear], gsd_head: GsdHead | None) -> None:
    """Copies a folder's weights into an attached model; the model's devices and dtypes stay.

    Raises:
        CheckpointError: the model has other modules, gates, scaling or SSE-U than the folder. Nothing is then copied.
    """
    meta, file = loaded.meta, loaded.path
    check_same(file, "sse_u", None if gsd_head is None else gsd_head.config, meta.sse_u)
    _check_layers(adapters, meta, file)
    head_state = {} if gsd_head is None else gsd_head.state_dict()
    shared = meta.adapters.gate.share_thresholds
    target = _lora_state(adapters) | _join(_gate_state(adapters, shared=shared), head_state)
    source = loaded.lora | _join(loaded.gates, loaded.gsd_head)
    check_tensors(source, {key: value.shape for key, value in target.items()}, file)
    for key, value in target.items():
        value.copy_(source[key])


def _check_layers(adapters: Mapping[str, GatedLoRALinear], meta: AdapterMeta, file: Path) -> None:
    """What no shape would show: another gate or scaling fits the tensors and is another model."""
    for name, layer in adapters.items():
        check_same(file, f"gate of {name}", layer.gate.config, meta.adapters.gate)
        check_same(file, f"lora_alpha of {name}", layer.lora_alpha, meta.adapters.lora_alpha)


def _lora_state(adapters: Mapping[str, GatedLoRALinear]) -> dict[str, Tensor]:
    layers = ((f"{name}.lora_{x}", getattr(layer, f"lora_{x}")) for name, layer in adapters.items() for x in "AB")
    return {f"{name}.{key}": value for name, matrix in layers for key, value in matrix.state_dict().items()}


def _gate_state(adapters: Mapping[str, GatedLoRALinear], *, shared: bool) -> dict[str, Tensor]:
    """Tensors of all gates by `<module>.<name>`; of a shared gate once, by `shared.<name>`."""
    gates = {name: layer.gate for name, layer in adapters.items()}
    if shared:
        gates = {_SHARED: next(iter(gates.values()))}
    return {f"{name}.{key}": value for name, gate in gates.items() for key, value in gate.state_dict().items()}


def _join(gates: Mapping[str, Tensor], gsd_head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both parts of `scaleearth.safetensors` under their prefixes."""
    return {p + key: value for p, part in zip(_PARTS, (gates, gsd_head), strict=True) for key, value in part.items()}


def _expected_ours(meta: AdapterMeta, modules: list[str]) -> dict[str, torch.Size]:
    """Keys and shapes of `scaleearth.safetensors`, from the settings alone."""
    with torch.device("meta"):
        gate = build_gate(meta.adapters.gate, meta.adapters.rank).state_dict()
        head = {} if meta.sse_u is None else GsdHead(meta.sse_u, meta.sse_u_dims).state_dict()
    owners = [_SHARED] if meta.adapters.gate.share_thresholds else modules
    gates = {f"{name}.{key}": value for name in owners for key, value in gate.items()}
    return {key: value.shape for key, value in _join(gates, head).items()}


def _modules(lora: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(".lora_A.weight") for key in lora if key.endswith(".lora_A.weight")]


def _threshold_means(gates: Mapping[str, Tensor], meta: AdapterMeta) -> dict[str, float]:
    """For a reader of the JSON: mean threshold of each rank tier over all modules, in log10 metres."""
    thresholds = [value.float().cpu() for key, value in gates.items() if key.endswith(".thresholds")]
    if not thresholds:
        return {}
    mean_r = torch.stack(thresholds).mean(0)
    return {tier: round(float(mean_r[ranks].mean()), 4) for tier, ranks in rank_tier_slices(meta.adapters.rank).items()}


def _peft_config(meta: AdapterMeta) -> dict[str, Any]:
    """The LoRA in PEFT's words: a sorted list of names, for servers accept no pattern and no `modules_to_save`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": meta.base_path,
        "r": meta.adapters.rank,
        "lora_alpha": meta.adapters.lora_alpha,
        "target_modules": sorted(meta.adapters.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
        "inference_mode": True,
    }


def _checksums(folder: Path) -> dict[str, str]:
    return {name: checksum(folder / name) for name in (PEFT_CONFIG, PEFT_WEIGHTS, OUR_WEIGHTS)}


def _from_peft_keys(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """PEFT's keys to ours; every module must have both matrices."""
    matches = {key: _PEFT_KEY.fullmatch(key) for key in tensors}
    for key, match in matches.items():
        if match is None:
            raise CheckpointError(
                "key is not a LoRA matrix of the language model",
                file=file,
                field=key,
                remedy="keys read base_model.model.<...>.language_model.<...>.lora_A.weight",
            )
    lora = {f"{m['module']}.{m['which']}": tensors[key] for key, m in matches.items() if m is not None}
    modules = {m["module"] for m in matches.values() if m is not None}
    check_keys(lora, {f"{module}.lora_{x}.weight" for module in modules for x in "AB"}, file)
    return lora
