"""Which places and questions a sheet shows: a draw by hash that sees neither answers nor verdicts.

Hand-picked examples prove what the hand wanted. Here every place, image and question gets a ticket, the BLAKE2b hash of
(seed, its ids), and the lowest tickets win: the same on every machine, whatever order the files have, and the same if
every verdict were turned round (a test). The price is that a sheet may show dull questions, and ones that all get wrong.

    places   the first places that were seen at `min_gsds` GSDs or more; of each image one question of every family in
             `FAMILIES`, filled up with types not shown yet
    types    for every type of question, the question with the lowest ticket

GSDs are effective, in metres per pixel that the model saw.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation.pairing import Key, differing
from scaleearth_pl.evaluation.predictions import (
    PREDICTIONS,
    SSE_U,
    Prediction,
    SseuReading,
    read_predictions,
    read_sse_u,
)

FAMILIES = ("scale_specific", "discriminative", "identification", "other")
"""Order in which an image's questions are drawn: what needs the GSD first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One column of answers: the name to print, where it lies, and all that it answered."""

    name: str
    path: Path
    rows: Mapping[Key, Prediction]
    sse_u: Mapping[str, SseuReading]

    @classmethod
    def load(cls, name: str, path: Path) -> Self:
        """Reads a run of `scaleearth test`, or a folder of answers of `scaleearth evaluate`.

        Raises:
            ConfigError: no such folder, or one without predictions.
            SampleError: a file that does not fit its schema.
        """
        if not path.is_dir():
            raise ConfigError(
                f"no run for variant {name!r}", file=path, field=name, value=str(path), remedy=_near(path)
            )
        if not (path / PREDICTIONS).is_file():
            raise ConfigError(
                f"variant {name!r} has no predictions",
                file=path / PREDICTIONS,
                field=name,
                value=str(path),
                remedy="make them: `scaleearth test` on the run, or name a folder that `scaleearth evaluate` wrote",
            )
        rows = {row.key: row for row in read_predictions(path / PREDICTIONS)}
        readings = read_sse_u(path / SSE_U) if (path / SSE_U).is_file() else ()
        return cls(name=name, path=path, rows=rows, sse_u={r.image_id: r for r in readings})


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How much is shown, and the seed of the tickets.

    Attributes:
        places: places on the sheet.
        questions: of each image.
        min_gsds: a place qualifies from so many different GSDs on.
        seed: another seed is another sheet.
    """

    places: int = 3
    questions: int = 3
    min_gsds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("places", "questions", "min_gsds"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))

    def ticket(self, *ids: str) -> bytes:
        """The lower, the earlier."""
        return hashlib.blake2b("\x1f".join([str(self.seed), *ids]).encode(), digest_size=16).digest()


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One image and the questions that are shown of it."""

    image_id: str
    place_id: str
    gsd_m: float | None
    rows: tuple[Prediction, ...]


def refuse_unequal(variants: Sequence[Variant]) -> None:
    """`ConfigError` unless all variants answered the very same questions: else they do not belong side by side."""
    if not variants:
        raise ConfigError("no variant", field="variants", value=[], remedy="name runs as NAME=FOLDER")
    first = variants[0]
    for variant in variants[1:]:
        others = differing(first.rows.values(), variant.rows.values())
        if others and first.rows.keys() != variant.rows.keys():
            raise ConfigError(
                f"variant {variant.name!r} did not answer the questions of {first.name!r}",
                file=variant.path / PREDICTIONS,
                field="(image_id, qa_id)",
                value=others[0],
                remedy="evaluate both on the same split, types and number of images",
            )
        if others:
            row = variant.rows[others[0]]
            raise ConfigError(
                f"variant {variant.name!r} was asked something else than {first.name!r} under the same id",
                file=variant.path / PREDICTIONS,
                field="question, answer, place",
                value=(row.question, row.answer, row.place_id),
                remedy="evaluate both on the same build of the corpus",
            )


def qualified(rows: Iterable[Prediction], min_gsds: int) -> list[str]:
    """Places that were seen at `min_gsds` different GSDs or more, sorted."""
    gsds_of: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        if row.gsd_m is not None:
            gsds_of[row.place_id].add(row.gsd_m)
    return sorted(place for place, gsds_m in gsds_of.items() if len(gsds_m) >= min_gsds)


def draw_places(rows: Sequence[Prediction], draw: Draw) -> list[list[Drawn]]:
    """The places of the sheet; of each its images, finest GSD first.

    Raises:
        ConfigError: no place was seen at so many GSDs.
    """
    places = qualified(rows, draw.min_gsds)
    if not places:
        most = max((len({r.gsd_m for r in rows if r.place_id == p}) for p in {r.place_id for r in rows}), default=0)
        raise ConfigError(
            "no place was seen at so many GSDs",
            field="min_gsds",
            value=draw.min_gsds,
            remedy=f"the most here is {most}: lower --min-gsds, or take a corpus with several images a place",
        )
    chosen = sorted(places, key=draw.ticket)[: draw.places]
    by_image: dict[str, dict[str, list[Prediction]]] = {place: defaultdict(list) for place in chosen}
    for row in rows:
        if row.place_id in by_image and row.gsd_m is not None:
            by_image[row.place_id][row.image_id].append(row)
    return [
        sorted((_drawn(some, draw) for some in by_image[place].values()), key=lambda d: (d.gsd_m or 0, d.image_id))
        for place in chosen
    ]


def draw_types(rows: Sequence[Prediction], draw: Draw) -> list[Drawn]:
    """One question of every type, by family (as in `FAMILIES`) and name."""
    best: dict[tuple[int, str, str], Prediction] = {}
    for row in rows:
        kind = (FAMILIES.index(row.family) if row.family in FAMILIES else len(FAMILIES), row.family, row.type)
        if kind not in best or draw.ticket(*row.key) < draw.ticket(*best[kind].key):
            best[kind] = row
    return [_as_drawn((best[kind],)) for kind in sorted(best)]


def _drawn(rows: Sequence[Prediction], draw: Draw) -> Drawn:
    """One question of each family, then types not shown yet, then anything; always by ticket."""
    waiting = sorted(rows, key=lambda row: draw.ticket(*row.key))
    chosen: list[Prediction] = []
    for family in FAMILIES:
        chosen += [row for row in waiting if row.family == family][:1]
    del chosen[draw.questions :]
    while len(chosen) < min(draw.questions, len(waiting)):
        shown = {row.type for row in chosen}
        left = [row for row in waiting if row not in chosen]
        chosen.append(next((row for row in left if row.type not in shown), left[0]))
    return _as_drawn(tuple(chosen))


def _as_drawn(rows: tuple[Prediction, ...]) -> Drawn:
    return Drawn(image_id=rows[0].image_id, place_id=rows[0].place_id, gsd_m=rows[0].gsd_m, rows=rows)


def _near(path: Path) -> str:
    """A remedy that lists the runs there are beside a missing one."""
    root = path.parent.parent if path.name == "latest" else path.parent
    there = sorted(p.parent.parent.name for p in root.glob(f"*/latest/{PREDICTIONS}"))
    listed = ", ".join(there[:12]) if there else "none"
    return f"train and test it (`make compare` makes all), or name another: {root} holds {listed}"
