"""Models under evaluation, made in a second: untrained, with noise in B so that the gate matters."""

from pathlib import Path
from typing import Any

import yaml
from fakes.runs import DATA, make_data, shallow_hf, tiny_model

from scaleearth_pl.evaluation.evaluator.model import Subject
from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.model.adapter_io import AdapterMeta, save_adapter
from scaleearth_pl.model.resolver import ResolverConfig


def tiny_subject(
    corpus: Path, *, gsd_text: str = "none", resolver: ResolverConfig | None = None, **model: Any
) -> Subject:
    """A subject in memory."""
    data = make_data(corpus, gsd_text=gsd_text)
    made = tiny_model(corpus, folder=shallow_hf(corpus), **{"noise": 0.3, **model})
    made.requires_grad_(False)
    made.eval()
    return Subject(
        name="tiny",
        path="nowhere",
        model=made,
        processor=data.processor,
        resolver=resolver or ResolverConfig(),
        fingerprint="0" * 16,
        trained_commit=None,
    )


def run_folder_of(subject: Subject, corpus: Path, folder: Path) -> Path:
    """The same model as a run of stage 2 would leave it."""
    model, source = subject.model, shallow_hf(corpus)
    adapter = next(iter(model.adapters.values()))
    from scaleearth_pl.model.gated_lora import AdapterConfig

    assert model.gsd_head is not None
    save_adapter(
        folder / "adapter",
        adapters=model.adapters,
        gsd_head_state=model.gsd_head.state_dict(),
        meta=AdapterMeta(
            adapters=AdapterConfig(rank=adapter.rank, lora_alpha=adapter.lora_alpha, gate=adapter.gate.config),
            sse_u=model.gsd_head.config,
            sse_u_dims=tuple(model.gsd_head.feature_dims),
            resolver=subject.resolver,
            base_path=str(source),
            base_hash=base_hash(str(source)),
            quantisation="none",
            commit="abc",
            extra={"dtype": "float32"},
        ),
    )
    sizes = {key: DATA[key] for key in ("min_pixels", "max_pixels")}
    document = {"experiment": "tiny", "data": {**sizes, "gsd_text": subject.gsd_text}}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return folder
