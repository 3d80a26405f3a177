"""What was registered before any run: variants, seeds, hypotheses and their bars, from one YAML file.

The file is data, its schema is here: an unknown key, kind or variant is refused, so that a bar cannot be moved by a
typing error. Its SHA-256 goes into the verdict, beside the commit of every run that was judged.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import yaml

from scaleearth_pl.core.errors import ConfigError

SCHEMA = "scaleearth-falsify/1"
OURS = "ours"
KINDS = {
    "difference": {"twin", "bound", "smallest"},
    "spoofing": {"grid_m", "truths_m", "within_points", "high"},
    "edges": {"twin", "edges_m", "within_decades"},
    "calibration": {"ratio", "coverage90", "rank_correlation"},
    "policy": {"policy", "cue", "bound"},
    "probes": {"permutations", "bound"},
    "ablation": {"twin", "label"},
}
"""Kinds of test, with the bars that each needs. An ablation has none: `scaleearth ablations` describes, and judges nothing."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One claim and how it is judged.

    Attributes:
        name: H1 and so on.
        claim: the sentence that the verdict is about.
        kind: which test, one of `KINDS`.
        bars: the numbers of that test.
        headline: whether the idea stands or falls with it.
        description: reported, not judged.
    """

    name: str
    claim: str
    kind: str
    bars: Mapping[str, Any]
    headline: bool = False
    description: bool = False

    @classmethod
    def parse(cls, name: str, row: Mapping[str, Any], *, file: Path) -> Self:
        """From the YAML entry; `ConfigError` names what is unknown or missing."""
        bars = {k: v for k, v in row.items() if k not in ("claim", "kind", "headline", "description")}
        kind = row.get("kind")
        if kind not in KINDS:
            raise ConfigError(
                "unknown kind of test", file=file, field=f"hypotheses.{name}.kind", value=kind, remedy=f"{list(KINDS)}"
            )
        wrong = sorted(KINDS[kind] ^ set(bars))
        if wrong or "claim" not in row:
            raise ConfigError("missing or unknown key", file=file, field=f"hypotheses.{name}", value=wrong or "claim")
        return cls(
            name=name,
            claim=str(row["claim"]),
            kind=kind,
            bars=bars,
            headline=bool(row.get("headline", False)),
            description=bool(row.get("description", False)),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole registration.

    Attributes:
        level: error rate over all judged hypotheses together.
        n_resamples: of the bootstrap over places.
        seeds: one stage 1 and one run of every variant for each.
        group: the questions that differences are judged on, a name of `groups.group_masks`.
        variants: overlays of stage 2 by name; `ours` has none.
        hypotheses: in their order.
        digest: SHA-256 of the file.
    """

    level: float
    n_resamples: int
    seeds: tuple[int, ...]
    group: str
    variants: Mapping[str, tuple[str, ...]]
    hypotheses: tuple[Hypothesis, ...]
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if OURS not in self.variants or not self.seeds or not self.hypotheses:
            raise ConfigError("a plan needs variant 'ours', a seed and a hypothesis", value=sorted(self.variants))
        kinds = {hypothesis.kind for hypothesis in self.hypotheses}
        if "ablation" in kinds and len(kinds) > 1:
            raise ConfigError("ablations are a plan of their own: they judge nothing", value=sorted(kinds))
        for hypothesis in self.hypotheses:
            twin = hypothesis.bars.get("twin", OURS)
            if twin not in self.variants:
                raise ConfigError(
                    "unknown variant",
                    field=f"hypotheses.{hypothesis.name}.twin",
                    value=twin,
                    remedy="add it to variants",
                )

    def require(self, *kinds: str, command: str) -> None:
        """`ConfigError` unless the plan has a test of each of these kinds, without which `command` has nothing to say."""
        missing = sorted(set(kinds) - {h.kind for h in self.hypotheses})
        if missing:
            raise ConfigError(
                f"the plan is not one for `scaleearth {command}`: it has no test of this kind",
                field="hypotheses",
                value=missing[0],
                remedy="hypotheses.yaml is for `scaleearth falsify`, ablations.yaml for `scaleearth ablations`",
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads and checks the file; `ConfigError` for a missing file, another schema, or a key that nobody reads."""
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigError(
                f"no plan: {error.strerror}", file=path, remedy="experiments/falsify/hypotheses.yaml"
            ) from error
        document = yaml.safe_load(text)
        if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
            raise ConfigError("not a plan of this version", file=path, field="schema", remedy=SCHEMA)
        wrong = sorted({f.name for f in fields(cls)} - {"digest"} ^ set(document))
        if wrong:
            raise ConfigError("missing or unknown key", file=path, field=wrong[0])
        return cls(
            level=float(document["level"]),
            n_resamples=int(document["n_resamples"]),
            seeds=tuple(document["seeds"]),
            group=str(document["group"]),
            variants={name: tuple(overlays) for name, overlays in document["variants"].items()},
            hypotheses=tuple(Hypothesis.parse(n, row, file=path) for n, row in document["hypotheses"].items()),
            digest=hashlib.sha256(text.encode()).hexdigest(),
        )
