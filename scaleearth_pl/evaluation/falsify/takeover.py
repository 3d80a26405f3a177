"""Which finished runs are taken over instead of being trained again: those that the very command would have made.

    needs           the file or folder that the command leaves at its end is there
    corpus          trained on the shards as they are now (the content hash in run.json)
    stage 1         grew from the stage 1 of its seed
    configuration   every setting that the command's files and options state, or leave at its default, has that value in
                    the run's config.yaml

So neither `make stage2 ARGS="--trainer.max_steps 50"` nor a file of experiments/ that was edited since can pass for the
registered variant. What changes no result, paths, names, ranks, validation, the cutting into micro-batches, the form in
which 4-bit values are held and whether answers are also written out as texts, is not compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from scaleearth_pl.core.console import console
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.run_files import RUN
from scaleearth_pl.loading.settings import CONFIG
from scaleearth_pl.model.backbone import BackboneConfig
from scaleearth_pl.model.gated_lora import AdapterConfig
from scaleearth_pl.model.gsd_head import GsdHeadConfig
from scaleearth_pl.model.resolver import ResolverConfig

CHANGES_NO_RESULT = frozenset(
    {
        *(
            "experiment",
            "size",
            "runs_dir",
            "test_after_fit",
            "model.init_args.init_from",
            "model.init_args.backbone.source",
            "model.init_args.backbone.keep_dequantized",
            "model.init_args.backbone.checkpointing",
            "model.init_args.generate",
            "model.init_args.max_new_tokens",
        ),
        *("data.root", "data.tokenizer", "data.num_workers", "data.micro_token_budget", "data.cache_dir"),
        *("data.val_splits", "data.predict_splits", "data.loader_timeout_s", "data.max_bad_share"),
        *("data.rank", "data.world_size"),
        *(
            "trainer.limit_val_batches",
            "trainer.callbacks",
            "trainer.strategy",
            "trainer.accelerator",
            "trainer.devices",
            "trainer.num_nodes",
        ),
    }
)
"""Settings that are not compared, as dotted names."""

UNSTATED: dict[str, Any] = {
    "model": {
        "init_args": {
            "backbone": asdict(BackboneConfig()),
            "adapters": asdict(AdapterConfig()),
            "head": asdict(GsdHeadConfig()),
            "resolver": asdict(ResolverConfig()),
            "optim": {"weight_decay": 0.0, "betas": [0.9, 0.999], "warmup_share": 0.03, "final_lr_share": 0.0},
            "lambda_gsd": 0.1,
            "nll_warmup_share": 0.1,
            "adapter": None,
        }
    },
    "data": {
        "train_splits": ["train"],
        "test_splits": ["test"],
        "limit_images": None,
        "gsd_text": "none",
        "controls": None,
        "tier_weights": None,
        "source_weights": None,
        "max_branch_tokens": 512,
        "window_shards": 8,
        "tiny_vocab_size": 1024,
    },
    "trainer": {
        "fast_dev_run": False,
        "overfit_batches": 0.0,
        "max_time": None,
        "limit_train_batches": None,
        "limit_test_batches": None,
    },
}
"""Defaults, where files may leave them out and a result depends on them; a test holds them against a run's config.yaml."""


def corpus_hash(corpus: Path) -> str:
    """Content hash of a corpus; `ConfigError` where there is none."""
    try:
        return str(json.loads((corpus / "index.json").read_text())["content_hash"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError("no corpus", file=corpus / "index.json", remedy="make shards") from error


def finished(folder: Path, corpus: Path, *, needs: str, command: Sequence[str], stage1: Path | None = None) -> bool:
    """Whether `folder`/latest is what `command` would make; says on the screen which setting differs, if one does.

    Args:
        folder: of the experiment.
        corpus: folder of shards.
        needs: what a complete run holds.
        command: a `scaleearth fit` command line.
        stage1: folder of the experiment that the run must have grown from; None for a stage 1.
    """
    latest = folder / "latest"
    if not (latest / needs).exists():
        return False
    try:
        record = json.loads((latest / RUN).read_text())
        config = yaml.safe_load((latest / CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    grew_from = None if stage1 is None else (stage1 / "latest/hf").resolve()
    if stage1 is not None and Path(record.get("stage1") or "").resolve() != grew_from:
        return False
    if record.get("corpus_hash") != corpus_hash(corpus):
        return False
    differs = first_difference(stated(command), config)
    if differs:
        console(stderr=True).print(f"{latest} is not taken over: {differs}", soft_wrap=True, markup=False)
    return differs is None


def stated(command: Sequence[str]) -> dict[str, Any]:
    """The settings that a command states: its files from left to right, then its options."""
    found: dict[str, Any] = UNSTATED
    options: dict[str, Any] = {}
    words = iter(command)
    for word in words:
        if word == "-c":
            found = merged(found, yaml.safe_load(Path(next(words)).read_text()))
        elif word.startswith("--"):
            nested: Any = yaml.safe_load(next(words))
            for name in reversed(word[2:].split(".")):
                nested = {name: nested}
            options = merged(options, nested)
    both: dict[str, Any] = merged(found, options)
    return both


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`: mappings key by key, anything else as a whole."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def first_difference(wanted: Any, found: Any, name: str = "") -> str | None:
    """The first setting that both state, each another value; None where there is none."""
    if name in CHANGES_NO_RESULT or (isinstance(wanted, str) and "${" in wanted):
        return None
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        below = (
            first_difference(value, found[key], f"{name}.{key}".lstrip("."))
            for key, value in wanted.items()
            if key in found
        )
        return next((difference for difference in below if difference), None)
    if _plain(wanted) == _plain(found):
        return None
    return f"{name} is {found!r}, and would be {wanted!r}"


def _plain(value: Any) -> Any:
    """Numbers as numbers: YAML takes 1e-3 for a text, the configuration's parser does not."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
