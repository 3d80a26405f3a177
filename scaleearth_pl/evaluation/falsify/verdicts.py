"""From numbers to words: supported, refuted or undecided, by the rules that were registered.

A *statistic* here is an estimate with its bootstrap distribution over places, so that one rule serves every test:

    interval    the percentiles (level/2, 1 - level/2) of the resamples
    p           two-sided: twice the share of resamples on the wrong side of the bound, (1 + count) / (1 + R) a side
    Holm        the judged hypotheses, ordered by p, are held to level/m, level/(m - 1), ...; p_adjusted is monotone

The plan lets a quantity (H4, H6) be supported where its interval lies inside its bars; here Holm's p is asked of it as
well, which is stricter: the third run's H4, interval inside and p 0.10, is undecided.

A claim with several bars (calibration) is supported if all are met, refuted if one is ruled out; its p is the largest.
Seeds are reported one by one, and a difference that changes its sign with the seed is not called supported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError

Word = Literal["supported", "refuted", "undecided", "described"]


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """An estimate, its resamples over places, and what it may be.

    Attributes:
        name: what is measured, with its unit.
        estimate: on all places, over all seeds.
        resamples: the same on R bootstrap resamples.
        seeds: the estimate of every seed.
        low: the claim is that the quantity lies above; None: no lower bar.
        high: the claim is that it lies below; None: no upper bar.
        smallest: the size of an effect worth having: below low + smallest, the claim is refuted.
        every_seed: whether each seed by itself must lie on the claimed side.
    """

    name: str
    estimate: float
    resamples: NDArray[np.float64]
    seeds: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    smallest: float = 0.0
    every_seed: bool = False

    def interval(self, level: float) -> tuple[float, float]:
        """The (1 - level) percentile interval."""
        low, high = np.nanquantile(self.resamples, [level / 2, 1 - level / 2])
        return float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        """`{estimate, ci95, seeds}`; null for a number that too few images leave undefined."""
        numbers = {"estimate": [self.estimate], "ci95": self.interval(0.05), "seeds": self.seeds}
        plain = {name: [x if math.isfinite(x) else None for x in values] for name, values in numbers.items()}
        return {**plain, "estimate": plain["estimate"][0]}

    def p_value(self) -> float:
        """Two-sided p of the claim's opposite: the smaller, the surer that the quantity lies inside its bars."""
        drawn = self.resamples[np.isfinite(self.resamples)]
        sides = [np.mean(drawn <= self.low)] if self.low is not None else []
        sides += [np.mean(drawn >= self.high)] if self.high is not None else []
        share = max([float(s) for s in sides], default=1.0)
        return min(1.0, 2 * (1 + share * len(drawn)) / (1 + len(drawn)))

    def ruled_out(self, level: float) -> bool:
        """Whether the interval excludes the claim, or an effect worth having."""
        low, high = self.interval(level)
        too_low = self.low is not None and high < self.low + self.smallest
        return too_low or (self.high is not None and low > self.high)

    def seeds_agree(self) -> bool:
        """Whether every seed lies on the claimed side, where that is asked."""
        inside = [
            (self.low is None or value > self.low) and (self.high is None or value < self.high) for value in self.seeds
        ]
        return not self.every_seed or all(inside)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The word for one hypothesis and the numbers behind it."""

    name: str
    claim: str
    verdict: Word
    headline: bool
    statistics: tuple[Statistic, ...]
    p_adjusted: float | None
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """`{verdict, estimate, ci95, p_adjusted, seeds}` of contracts.md, and every statistic apart."""
        first = self.statistics[0] if self.statistics else None
        return {
            "claim": self.claim,
            "headline": self.headline,
            "verdict": self.verdict,
            "p_adjusted": self.p_adjusted,
            **({"estimate": None, "ci95": None, "seeds": []} if first is None else first.as_json()),
            "statistics": [{"name": s.name, **s.as_json()} for s in self.statistics],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was measured for one hypothesis; no statistics: it could not be measured, and `notes` say why."""

    name: str
    claim: str
    statistics: tuple[Statistic, ...]
    headline: bool = False
    description: bool = False
    notes: tuple[str, ...] = ()

    def p_value(self) -> float:
        """The weakest link."""
        return max((s.p_value() for s in self.statistics), default=1.0)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjustment: step down, monotone, at most 1."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def judge(findings: Sequence[Finding], *, level: float) -> list[Verdict]:
    """A verdict for each finding; what is only described takes no share of the error rate.

    Raises:
        ConfigError: a level that is no probability.
    """
    if not 0 < level < 1:
        raise ConfigError("the level is a probability", field="level", value=level, remedy="0.05")
    adjusted = holm({f.name: f.p_value() for f in findings if not f.description and f.statistics})
    return [_judge_one(finding, adjusted.get(finding.name), level) for finding in findings]


def withheld(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same numbers without a word: what a smoke test of one seed and forty steps may say."""
    return [
        replace(v, verdict="described" if v.verdict == "described" else "undecided", p_adjusted=None) for v in verdicts
    ]


def _judge_one(finding: Finding, p_adjusted: float | None, level: float) -> Verdict:
    return Verdict(
        name=finding.name,
        claim=finding.claim,
        headline=finding.headline,
        verdict=_word(finding, p_adjusted, level),
        statistics=finding.statistics,
        p_adjusted=p_adjusted,
        notes=finding.notes,
    )


def _word(finding: Finding, p_adjusted: float | None, level: float) -> Word:
    if finding.description:
        return "described"
    if p_adjusted is None:
        return "undecided"
    if p_adjusted < level and all(s.seeds_agree() for s in finding.statistics):
        return "supported"
    return "refuted" if any(s.ruled_out(level) for s in finding.statistics) else "undecided"
