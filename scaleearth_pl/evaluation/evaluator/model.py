"""A run folder to a model that can be evaluated: the *subject*.

Takes a run of stage 2 (which holds `adapter/`), an adapter folder, a run of stage 1 (`hf/`) or a Hugging Face folder of
stage 1. The processor's sizes come from the run's `config.yaml`, because they decide which GSD a pixel has; the
backbone's weights must have the hash that the adapter was trained on.

A subject whose training pinned the scale (policy "spoof": the constant-gate baseline) is evaluated with that scale
whatever a view asks for: it is the definition of the variant, not a policy of evaluation.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.data.processor import GsdText, Processor
from scaleearth_pl.data.tokenizer import load_tokenizer
from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.model.adapter_io import OUR_CONFIG, AdapterFolder, apply_adapter, load_adapter
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth

CONFIG = "config.yaml"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model under evaluation, in eval mode.

    Attributes:
        name: the experiment, or the folder's name.
        path: as it was given.
        model: with or without adapters and SSE-U.
        processor: images and questions to model inputs, as in training.
        resolver: what training used; `marginal` and a pinned scale are kept in evaluation.
        fingerprint: of weights and settings: equal fingerprints, equal answers.
        trained_commit: of the code that trained it; None where nothing says so.
    """

    name: str
    path: str
    model: ScaleEarth
    processor: Processor
    resolver: ResolverConfig
    fingerprint: str
    trained_commit: str | None

    @property
    def folder(self) -> str:
        """Where its results go: name and fingerprint, so that another training of the same name is another folder."""
        return f"{self.name}-{self.fingerprint[:8]}"

    @property
    def gsd_text(self) -> GsdText:
        """How baseline B3 is told the GSD; "none" for all others."""
        return self.processor.gsd_text

    @property
    def reads_scale(self) -> bool:
        """Whether what it is told of the GSD can change an answer: not in plain LoRA, not in stage 1."""
        return self.gsd_text != "none" or any(not a.gate.always_open for a in self.model.adapters.values())

    @property
    def has_sse_u(self) -> bool:
        """Whether the model can read the GSD itself."""
        return self.model.gsd_head is not None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device


def load_subject(path: Path | str, *, base: Path | str | None = None, device: str = "auto") -> Subject:
    """Loads a run for evaluation.

    Args:
        path: see the module's text.
        base: folder of the backbone, where the recorded path has moved.
        device: "auto" is the first GPU, or the host without one.

    Raises:
        CheckpointError: nothing to load there, another base, or no processor sizes.
    """
    path = Path(path)
    run = path.parent if path.name in ("adapter", "hf") else path
    settings = _settings(run)
    adapter_path = next((p for p in (path, path / "adapter") if (p / OUR_CONFIG).is_file()), None)
    adapter = None if adapter_path is None else load_adapter(adapter_path)
    source = str(base) if base is not None else _base(path, adapter)
    data = settings["data"]
    processor = Processor(
        load_tokenizer(source),
        min_pixels=int(data["min_pixels"]),
        max_pixels=int(data["max_pixels"]),
        gsd_text=data.get("gsd_text", "none"),
    )
    weights = base_hash(source)
    model = _build(source, processor, adapter, weights)
    model.requires_grad_(False)
    model.eval().to(_device(device))
    words = [weights, str(sorted(data.items(), key=str)) if adapter is None else adapter.meta.commit]
    words += [str(data["min_pixels"]), str(data["max_pixels"]), processor.gsd_text]
    if adapter is not None:
        words += [hashlib.sha256((adapter.path / OUR_CONFIG).read_bytes()).hexdigest()]
    return Subject(
        name=str(settings.get("experiment") or run.resolve().parent.name),
        path=str(path),
        model=model,
        processor=processor,
        resolver=ResolverConfig() if adapter is None else adapter.meta.resolver,
        fingerprint=hashlib.sha256("|".join(words).encode()).hexdigest()[:16],
        trained_commit=None if adapter is None else adapter.meta.commit,
    )


def _build(source: str, processor: Processor, adapter: AdapterFolder | None, weights: str) -> ScaleEarth:
    if adapter is None:
        backbone = build_backbone(BackboneConfig(source=source), token_ids=processor.token_ids)
        return ScaleEarth(backbone=backbone)
    meta = adapter.meta
    if meta.base_hash not in ("hub", weights):
        raise CheckpointError(
            "the backbone is not the one that the adapter was trained on",
            file=source,
            field="base_hash",
            value=weights[:12],
            remedy=f"give the folder whose weights hash to {meta.base_hash[:12]}, with base=",
        )
    config = BackboneConfig(
        source=source,
        quantise="nf4" if meta.quantisation == "nf4" else "none",
        dtype=meta.extra.get("dtype", "float32"),
    )
    backbone = build_backbone(config, token_ids=processor.token_ids)
    model = ScaleEarth(backbone=backbone, adapters=meta.adapters, head=meta.sse_u, resolver=meta.resolver)
    apply_adapter(adapter, adapters=model.adapters, gsd_head=model.gsd_head)
    return model


def _settings(run: Path) -> dict[str, Any]:
    file = run / CONFIG
    try:
        document = yaml.safe_load(file.read_text())
        document["data"]["min_pixels"], document["data"]["max_pixels"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"the run does not say how large its images were: {error!r}",
            file=file,
            field="data.max_pixels",
            remedy="name a run folder of `scaleearth fit`, which holds config.yaml",
        ) from error
    return dict(document)


def _base(path: Path, adapter: AdapterFolder | None) -> str:
    if adapter is None:
        return str(next((p for p in (path / "hf", path) if (p / "config.json").is_file()), path))
    recorded = adapter.meta.base_path
    roots = [Path(), *path.resolve().parents]
    return str(next((root / recorded for root in roots if (root / recorded).is_dir()), recorded))


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
