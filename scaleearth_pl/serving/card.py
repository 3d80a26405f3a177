"""The model card: what a stranger must know of an adapter, from its settings and its run's figures.

Nothing is claimed that is not in a file: accuracies come from `summary.json` of the run, with the majority floor beside
them, and a card without that file says that there are no figures.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scaleearth_pl.core.run_files import SUMMARY
from scaleearth_pl.model.adapter_io import AdapterMeta

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The figures of the run that an adapter came from; empty where there is no `summary.json`."""

    summary: Mapping[str, Any]

    @classmethod
    def read(cls, run: Path) -> Self:
        """From a run folder."""
        file = run / SUMMARY
        return cls(summary=json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def write_card(folder: Path, meta: AdapterMeta, run: RunFacts, *, repo_id: str | None = None) -> None:
    """Writes `README.md` with the hub's metadata block; validated by huggingface_hub's own parser in tests.

    `repo_id` is where the folder will be pushed to; None where nobody knows yet.
    """
    from huggingface_hub import ModelCard

    text = card_text(folder.name, meta, run, repo_id=repo_id)
    card = ModelCard(f"---\n{_metadata(folder.name, meta, run).to_yaml()}\n---\n\n{text}")
    card.save(folder / CARD)


def _metadata(name: str, meta: AdapterMeta, run: RunFacts) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    accuracy = run.summary.get("accuracy", {})
    corpus = str(run.summary.get("corpus", "unknown"))
    result = EvalResult(
        task_type="visual-question-answering",
        dataset_type=corpus,
        dataset_name=corpus,
        metric_type="accuracy",
        metric_value=round(float(accuracy.get("overall", 0.0)), 4),
    )
    return ModelCardData(
        model_name=name,
        base_model=meta.base_path if meta.base_path.count("/") == 1 else None,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=["remote-sensing", "lora", "scaleearth", "ground-sampling-distance"],
        eval_results=[result] if accuracy else None,
    )


def card_text(name: str, meta: AdapterMeta, run: RunFacts, *, repo_id: str | None = None) -> str:
    """The card without its metadata block."""
    use = _use(repo_id or "ORG/NAME", meta)
    return "\n\n".join([_head(name, meta), use, _figures(run.summary), _settings(meta, run), _limits(meta)]) + "\n"


def _head(name: str, meta: AdapterMeta) -> str:
    kinds = {"continuous": "CS-HLoRA", "open": "plain LoRA (baseline)", "bucketed": "bucketed LoRA (baseline)"}
    kind = meta.adapters.gate.kind
    text = f"# {name}\n\nA ScaleEarth adapter ({kinds[kind]}, after arXiv 2605.07562) for questions about overhead imagery."
    if kind != "open":
        text += " The ground sampling distance (GSD) of each image opens or closes each LoRA rank."
    if meta.sse_u is not None:
        text += " SSE-U, a small head on the vision features, reads the GSD where no metadata tells it."
    return text


def _use(repo_id: str, meta: AdapterMeta) -> str:
    return (
        "## Use\n\n```python\nimport scaleearth_pl\nfrom huggingface_hub import snapshot_download\n\n"
        f'earth = scaleearth_pl.load(snapshot_download("{repo_id}"))  # or the path of this folder\n'
        'print(earth.ask("tile.tif", "How wide is the road?").text)\n```\n\n'
        f"{_peft(meta)}\n\n"
        f"Base: `{meta.base_path}` (weights {meta.base_hash[:12]}), {meta.quantisation} in training."
    )


def _peft(meta: AdapterMeta) -> str:
    if meta.adapters.gate.kind == "open":
        return "PEFT and servers that speak PEFT read this folder too: it has no gates."
    return (
        "PEFT and servers that speak PEFT read this folder too, but then *all gates are open*: that is another model. "
        f"`scaleearth export FOLDER --gsd-m {meta.resolver.spoof_gsd_m or 0.5:g} --out DIR` folds the gate at one GSD "
        "into an ordinary LoRA for them."
    )


def _figures(summary: Mapping[str, Any]) -> str:
    accuracy = summary.get("accuracy")
    if not accuracy:
        return "## Figures\n\nNone: the run that this adapter came from has no summary."
    rows = [("all questions", accuracy["overall"]), ("always the commonest answer", accuracy["majority"])]
    rows += [(f"{tier} tier", value) for tier, value in accuracy.get("by_tier", {}).items()]
    rows += [(family.replace("_", "-"), value) for family, value in accuracy.get("by_family", {}).items()]
    table = "\n".join(f"| {label} | {_number(value)} |" for label, value in rows)
    text = (
        f"## Figures\n\nTest split of corpus `{summary['corpus']}`, greedy answers, commit `{summary['commit']}`.\n\n"
    )
    text += f"| accuracy | |\n|---|---|\n{table}"
    head = summary.get("sse_u")
    if head:
        names = {
            "mae_decades": "mean absolute error (decades)",
            "calibration_ratio": "calibration ratio (0.798 is exact)",
        }
        lines = "\n".join(f"| {label} | {_number(head[key])} |" for key, label in names.items() if key in head)
        text += f"\n\n| SSE-U | |\n|---|---|\n{lines}"
    return text


def _settings(meta: AdapterMeta, run: RunFacts) -> str:
    gate, versions = meta.adapters.gate, run.summary.get("versions", {})
    facts = [
        f"rank {meta.adapters.rank}, lora_alpha {meta.adapters.lora_alpha}, targets {', '.join(meta.adapters.targets)}",
        f"gate {gate.kind}, sharpness {gate.sharpness:g} per decade, thresholds "
        + ("shared" if gate.share_thresholds else "per module"),
        f"SSE-U {'none' if meta.sse_u is None else f'with {meta.sse_u.hidden} hidden units'}",
        f"policy in training: {meta.resolver.policy}; {meta.extra.get('steps', 'unknown')} steps; commit {meta.commit}",
    ]
    facts += [", ".join(f"{name} {version}" for name, version in versions.items())] if versions else []
    return "## Settings\n\n" + "\n".join(f"- {fact}" for fact in facts)


def _limits(meta: AdapterMeta) -> str:
    text = (
        "## Limits\n\nAnswers are greedy and unchecked; a wrong GSD gives a wrong answer without a word, so look at "
        "`answer.scale`. Images are reduced to the pixels that training used, and what is smaller than a pixel then is "
        "not seen."
    )
    if meta.extra.get("steps", 0) and meta.sse_u_dims and max(meta.sse_u_dims) < 1024:
        text += " This backbone is a tiny one, trained on a procedural world: a demonstration, not a tool."
    return text


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
