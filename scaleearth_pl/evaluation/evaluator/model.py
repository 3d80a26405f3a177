"""A run folder to a model that can be evaluated: the *subject*.

Takes a run of stage 2 (which holds `adapter/`), an adapter folder or what `export --native` wrote, as `loading` finds
them; a run of stage 1 (`hf/`) or a Hugging Face folder of stage 1. The processor's sizes must be those that training
wrote down, because they decide which GSD a pixel has.

A subject whose training pinned the scale (policy "spoof": the constant-gate baseline) is evaluated with that scale
whatever a view asks for: it is the definition of the variant, not a policy of evaluation.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from scaleearth_pl.core.run_files import RUN
from scaleearth_pl.data.processor import GsdText, Processor
from scaleearth_pl.loading.folders import adapter_in
from scaleearth_pl.loading.model import build_model, for_inference
from scaleearth_pl.loading.settings import CONFIG, ProcessorSettings, parse_settings, read_config, settings_unknown
from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.model.adapter_io import OUR_CONFIG, AdapterFolder, load_adapter
from scaleearth_pl.model.backbone import BackboneConfig, build_backbone
from scaleearth_pl.model.resolver import ResolverConfig
from scaleearth_pl.model.scaleearth import ScaleEarth


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
        trained_splits: by a corpus' content hash, what was trained on there, by this run or its stage 1.
    """

    name: str
    path: str
    model: ScaleEarth
    processor: Processor
    resolver: ResolverConfig
    fingerprint: str
    trained_commit: str | None
    trained_splits: Mapping[str, frozenset[str]] = field(default_factory=dict)

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
        ConfigError: no such device.
    """
    path = Path(path)
    found = adapter_in(path)
    return _stage1(path, base, device) if found is None else _stage2(path, load_adapter(found), base, device)


def _stage2(path: Path, adapter: AdapterFolder, base: Path | str | None, device: str) -> Subject:
    loaded = build_model(adapter, base=base, device=device)
    description = hashlib.sha256((adapter.path / OUR_CONFIG).read_bytes()).hexdigest()
    return Subject(
        name=_name(path),
        path=str(path),
        model=loaded.model,
        processor=loaded.processor,
        resolver=adapter.meta.resolver,
        fingerprint=_fingerprint(loaded.base, adapter.meta.commit, loaded.settings, description),
        trained_commit=adapter.meta.commit,
        trained_splits=_trained_splits(_run(path), _run(Path(loaded.base))),
    )


def _stage1(path: Path, base: Path | str | None, device: str) -> Subject:
    """A backbone without adapters; no adapter folder says what it was trained with, so its run must."""
    file = _run(path) / CONFIG
    if (data := read_config(file).get("data")) is None:
        raise settings_unknown(file)
    settings = parse_settings(data, file)
    source = str(base or next((p for p in (path / "hf", path) if (p / "config.json").is_file()), path))
    processor = settings.processor(source)
    model = ScaleEarth(backbone=build_backbone(BackboneConfig(source=source), token_ids=processor.token_ids))
    for_inference(model, device)
    return Subject(
        name=_name(path),
        path=str(path),
        model=model,
        processor=processor,
        resolver=ResolverConfig(),
        fingerprint=_fingerprint(source, str(sorted(data.items(), key=str)), settings),
        trained_commit=None,
        trained_splits=_trained_splits(_run(path)),
    )


def _fingerprint(base: str, trained: str, settings: ProcessorSettings, *more: str) -> str:
    """Of the backbone's weights, of how it was trained, and of what it sees."""
    sizes = str(settings.min_pixels), str(settings.max_pixels)
    words = (base_hash(base), trained, *sizes, settings.gsd_text, *more)
    return hashlib.sha256("|".join(words).encode()).hexdigest()[:16]


def _trained_splits(*runs: Path) -> dict[str, frozenset[str]]:
    """What the runs say that they were trained on; a folder that is no run says nothing."""
    found: dict[str, frozenset[str]] = {}
    for run in runs:
        splits = (read_config(run / CONFIG).get("data") or {}).get("train_splits") or ()
        if (record := run / RUN).is_file():
            content = str(json.loads(record.read_text()).get("corpus_hash"))
            found[content] = found.get(content, frozenset()) | frozenset(splits)
    return found


def _run(path: Path) -> Path:
    return path.parent if path.name in ("adapter", "hf") else path


def _name(path: Path) -> str:
    """The experiment, or the folder of its versions; of a folder without a run, its own name."""
    run = _run(path).resolve()
    config = read_config(run / CONFIG)
    return str(config.get("experiment") or (run.parent if config else run).name)
