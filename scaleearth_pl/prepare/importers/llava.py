r"""Instruction sets in the LLaVA shape: RS-GPT4V (stage 1), GeoChat_Instruct, and any other of that form.

    [{"id": ..., "image": "x.png", "conversations": [{"from": "human", "value": "<image>\n..."}, {"from": "gpt", ...}]}]

One image occurs in many rows; the spool brings them together, since a sample is an image with *all* its questions.
Turn k of a conversation is a question with the k - 1 earlier turns as its context (`history`), because later turns say
"it". Task tags and boxes stay in the text. These sets state no GSD: what the file name, the data set's constant or
DOTA's parents (`parents`) do not tell is unknown, and SSE-U's business.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.geo.candidates import Candidate
from scaleearth_pl.geo.sensors import datasets
from scaleearth_pl.prepare.importers.bad_rows import BadRows
from scaleearth_pl.prepare.importers.dota import DotaParents
from scaleearth_pl.prepare.importers.jsonfiles import rows_of_file
from scaleearth_pl.prepare.importers.record import Found, Records, Rejected
from scaleearth_pl.prepare.importers.source import ImageIds, Source, plain_name, words
from scaleearth_pl.prepare.importers.spool import Item, Spool, SpoolRow
from scaleearth_pl.prepare.importers.store import FileTree, first_tree
from scaleearth_pl.prepare.inject import Evidence

_SPECIAL = re.compile(r"<\|[A-Za-z_]+\|>|<image>|<video>")
_TAG = re.compile(r"\[([a-z ]{3,20})\]")
_DOTA_PATCH = re.compile(r"(P\d{4})_\d+")


@dataclass(frozen=True, kw_only=True)
class Llava(Source):
    """One table and its images.

    Args:
        name: source name written to the samples; also the folder below `root` that is tried first.
        table: .json array or .jsonl, relative to that folder; None takes the only one there.
        images: folder or archive of the images, relative to that folder.
        split: what the rows become ("train", or "stage1" for RS-GPT4V); it must be among `splits`.
        dataset: row of `datasets.csv` where all images are of one set.
        parents: folder of DOTA's label or meta files, for images named `P0000_0001`.
        licence: of the set.
        history: earlier turns of a conversation are context of the later ones; otherwise turns stand alone.
    """

    kind: ClassVar[str] = "llava"
    allowed_splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "stage1")

    name: str
    table: str | None = None
    images: str = "images"
    split: str = "train"
    splits: tuple[str, ...] = ("train", "stage1")
    dataset: str | None = None
    parents: Path | None = None
    licence: str | None = None
    history: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        datasets().refuse_unknown(self.dataset, field="dataset")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ConfigError("name must be lower-case letters, digits, - and _", field="name", value=self.name)
        if self.split not in self.allowed_splits:
            raise ConfigError("unknown split", field="split", value=self.split, remedy=f"use {self.allowed_splits}")
        if self.split not in self.splits:
            remedy = f"write splits: [{self.split}]"
            raise ConfigError("split is not among `splits`", field="split", value=self.split, remedy=remedy)

    def present(self) -> bool:
        """Whether the table is there."""
        return self._table() is not None

    def records(self) -> Records:
        """One record an image, in the order of their names."""
        table, images = self._table(), first_tree(self._folder, self.images, f"{self.images}.zip", f"{self.images}.tar")
        if table is None or images is None:
            raise ConfigError("needs one table and its images", file=self._folder, value=(self.table, self.images))
        yield from images.rejected(self.name)
        parents = DotaParents(self.parents) if self.parents else None
        with Spool(self.work) as spool:
            bad = BadRows(file=table)
            spool.rows(self._rows(table, bad))
            yield from bad.records()
            ids = ImageIds(self.name)
            for image_name, _, items in spool.groups():
                yield from self._image(images, parents, ids, str(image_name), items)

    @property
    def _folder(self) -> Path:
        below = self.root / self.name
        return below if below.is_dir() else self.root

    def _table(self) -> Path | None:
        if self.table is not None:
            path = self._folder / self.table
            return path if path.is_file() else None
        if self._folder == self.root:
            return None
        found = sorted(p for p in self._folder.glob("*.json*") if p.suffix in (".json", ".jsonl"))
        if len(found) > 1:
            names = [p.name for p in found]
            raise ConfigError("several tables", file=self._folder, value=names, remedy="name one in `table`")
        return found[0] if found else None

    def _rows(self, table: Path, bad: BadRows) -> Iterator[SpoolRow]:
        for number, (place, row) in enumerate(rows_of_file(table)):
            problem = str(row) if isinstance(row, SampleError) else _row_problem(row)
            if problem is None and not isinstance(row, SampleError):
                bad.n_good += 1
                turns = json.dumps(row["conversations"])
                yield plain_name(row["image"]), number, number, "conversation", turns, None
                continue
            kind = "broken_json" if isinstance(row, SampleError) else "bad_row"
            bad.add(Rejected(source=self.name, item=place, kind=kind, reason=problem or ""))

    def _image(
        self, images: FileTree, parents: DotaParents | None, ids: ImageIds, image_name: str, items: list[Item]
    ) -> Iterator[Found | Rejected]:
        image = images.image_or_rejected(image_name, source=self.name, item=image_name)
        if isinstance(image, Rejected):
            yield image
            return
        image_id = ids.of(image_name)
        qas: list[Question] = []
        for number, _, text, _ in items:
            try:
                qas += conversation(json.loads(text), f"{image_id}-{number}", history=self.history)
            except (SampleError, ValueError) as error:
                yield Rejected(source=self.name, item=f"{image_name}#{number}", kind="bad_question", reason=str(error))
        if not qas:
            return
        try:
            parent, extra = parent_of(image_name, parents)
        except GsdError as error:
            yield Rejected(source=self.name, item=image_name, kind="bad_gsd", reason=str(error))
            return
        ids.take(image_id)
        yield Found(
            source=self.name,
            split=self.split,
            image_id=image_id,
            image=image,
            qas=tuple(qas),
            evidence=Evidence(image_id=image_id, name=image.name, dataset=self.dataset, extra=extra),
            region_id=f"dota-{parent}" if parent else None,
            licence=self.licence,
        )


def parent_of(image_name: str, parents: DotaParents | None) -> tuple[str | None, tuple[Candidate, ...]]:
    """Parent id of a patch of DOTA, and its GSD where known; `GsdError` where the parent states one that is none."""
    match = _DOTA_PATCH.match(image_name.rsplit("/", 1)[-1])
    if match is None:
        return None, ()
    candidate = parents.candidate(match[1]) if parents else None
    return match[1], (candidate,) if candidate else ()


def conversation(turns: Any, identity: str, *, history: bool) -> list[Question]:
    """The questions of one conversation.

    Raises:
        ValueError: not human and gpt in turn, an empty text, or a text that spells a special token.
    """
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        raise ValueError("conversation is not pairs of human and gpt")
    texts = [_turn_text(turn, "human" if n % 2 == 0 else "gpt", first=n == 0) for n, turn in enumerate(turns)]
    pairs = list(zip(texts[0::2], texts[1::2], strict=True))
    return [
        Question(
            id=f"{identity}-{n}",
            type=_type_of(asked),
            family="other",
            question=asked,
            answer=answered,
            turns=tuple(pairs[:n]) if history and n else None,
        )
        for n, (asked, answered) in enumerate(pairs)
    ]


def _turn_text(turn: Any, who: str, *, first: bool) -> str:
    if not isinstance(turn, dict) or turn.get("from") != who or not isinstance(turn.get("value"), str):
        raise ValueError(f"turn is not of {who!r}: {str(turn)[:80]}")
    text: str = turn["value"]
    text = (text.replace("<image>", "", 1) if first else text).strip()
    if not text or _SPECIAL.search(text):
        raise ValueError(f"text is empty or spells a special token: {text[:80]!r}")
    return text


def _type_of(asked: str) -> str:
    tag = _TAG.match(asked)
    return words(tag[1]).replace(" ", "_") if tag else "instruction"


def _row_problem(row: dict[str, Any]) -> str | None:
    if not isinstance(row.get("image"), str):
        return f"row has no single image: {str(row.get('image'))[:80]}"
    if not row["image"].isprintable():
        return f"image name is not printable: {row['image'][:80]!r}"
    return None if row.get("conversations") else "row has no conversations"
