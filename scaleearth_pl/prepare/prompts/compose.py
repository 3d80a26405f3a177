"""Prompts from files: system rules + the image's tier + one family + what this very GSD resolves.

Shared text stands first and the image last, so that a server with prefix caching computes the long rules once per tier,
family and GSD, and only some 60 tokens and the picture per request. The lists of what is and is not resolved come from
the table that the filter enforces (`visibility.py`), at the image's own GSD: a tier is a decade wide or more.

A file opens with "version N", which goes into every record together with a hash of the files' text, so that a prompt
that was edited without a new number still asks anew.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.core.sample import FAMILIES
from scaleearth_pl.prepare.visibility import visible_and_not

GENERATED_FAMILIES = tuple(family for family in FAMILIES if family != "other")
"""Families of generated questions, as in the paper's pipeline (B)."""

_METRIC = "Lengths are measured in metres from the scale that you are told below."
_NO_METRIC = "The scale of this image is too uncertain for metres: ask for no measured length, width, area or spacing."


@dataclass(frozen=True, kw_only=True)
class View:
    """What a prompt may say of an image: metres per pixel, size in pixels, class label; never the place."""

    gsd_m: float | None
    provenance: Provenance
    tier: Tier
    width: int
    height: int
    class_label: str | None

    @property
    def metric(self) -> bool:
        """True where a length in metres can be measured: the GSD is exact or nominal."""
        return self.provenance in (Provenance.EXACT, Provenance.NOMINAL)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """System and user text of one request; `version` names the files and their content."""

    system: str
    user: str
    version: str


def generation_prompt(view: View, family: str, *, n_questions: int) -> Prompt:
    """Asks for up to `n_questions` pairs of one family.

    Raises:
        ConfigError: an unknown family, or scale-specific questions about an image of unknown scale.
    """
    if family not in GENERATED_FAMILIES:
        raise ConfigError(
            "unknown family", field="families", value=family, remedy=f"use {', '.join(GENERATED_FAMILIES)}"
        )
    if family == "scale_specific" and view.gsd_m is None:
        raise ConfigError("scale-specific questions need a GSD", field="gsd_m", value=None)
    names = ("system", f"tier_{view.tier}", f"family_{family}")
    system = Template("\n\n".join(_body(name) for name in names)).substitute(
        n_questions=n_questions, metric_rule=_METRIC if view.metric else _NO_METRIC
    )
    return Prompt(
        system=system + _resolved(view),
        user=f"{_scale(view)}\n{_scene(view)}\nWrite the pairs as JSON.",
        version=version_of("generate", names),
    )


def audit_prompt(view: View, pairs: Sequence[tuple[str, str, Sequence[str] | None]]) -> Prompt:
    """Asks to judge (question, answer, options) triples, numbered from 0. The auditor is not told the class label."""
    lines = [
        f"{k}. Question: {question} Answer: {answer}" + (f" Options: {'; '.join(options)}" if options else "")
        for k, (question, answer, options) in enumerate(pairs)
    ]
    return Prompt(
        system=_body("audit") + _resolved(view),
        user=f"{_scale(view)}\nPairs:\n" + "\n".join(lines) + f"\nJudge all {len(lines)} pairs as JSON.",
        version=version_of("audit", ("audit",)),
    )


def version_of(purpose: str, names: Sequence[str]) -> str:
    """For example "generate-1.1.1-5f2a9c31": file versions in order, then a hash of their text."""
    text = "\n".join(_read(name) for name in names)
    numbers = ".".join(_read(name).split("\n", 1)[0].removeprefix("version ") for name in names)
    return f"{purpose}-{numbers}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _scale(view: View) -> str:
    if view.gsd_m is None:
        return f"Size: {view.width} x {view.height} pixels. Metres per pixel: unknown."
    if not view.metric:
        return f"Size: {view.width} x {view.height} pixels. Metres per pixel: roughly {view.gsd_m:.2g}, uncertain."
    ground = f"{view.width * view.gsd_m:.4g} m x {view.height * view.gsd_m:.4g} m"
    return f"Size: {view.width} x {view.height} pixels. Metres per pixel: {view.gsd_m:.4g}. On the ground: {ground}."


def _scene(view: View) -> str:
    if view.class_label is None:
        return "Nobody has named this scene; ask about it only if you are sure what it is."
    return f"Scene, told to you alone: {view.class_label.replace('_', ' ')}."


def _resolved(view: View) -> str:
    if view.gsd_m is None or not view.metric:
        return ""
    shown, hidden = visible_and_not(view.gsd_m)
    lines = [f"Finest things that are resolved in this image: {', '.join(shown)}."] if shown else []
    lines += [f"Not resolved in this image, whatever you believe to see: {', '.join(hidden)}."] if hidden else []
    return "\n\n" + "\n".join(lines)


def _body(name: str) -> str:
    return _read(name).split("\n", 1)[1].strip()


@cache
def _read(name: str) -> str:
    text = files("scaleearth_pl.prepare.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    if not text.startswith("version "):
        raise ConfigError("prompt file does not open with its version", file=f"{name}.txt", value=text[:20])
    return text
