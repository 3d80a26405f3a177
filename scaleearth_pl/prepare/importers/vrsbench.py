"""VRSBench: one JSON an image with caption and question pairs, over patches of DOTA (`P0000_0001`) and DIOR (`00001_0000`).

    Annotations_<split>/<stem>.json   Images_<split>/<stem>.png   (folders, or the published zips of these names)

The GSD was not exported but can be had back: the parent's id leads to DOTA's own texts (`parents`). DIOR states a range
for the whole set, so its patches are imprecise; DOTA patches without `parents` are unknown. The parent is the region,
so that patches of one scene never end on two sides of a split. A pair that is no question costs itself, not the image.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.sample import Question
from scaleearth_pl.prepare.importers.dota import DotaParents
from scaleearth_pl.prepare.importers.jsonfiles import Row
from scaleearth_pl.prepare.importers.llava import parent_of
from scaleearth_pl.prepare.importers.record import Found, ImageRef, Records, Rejected
from scaleearth_pl.prepare.importers.source import Source
from scaleearth_pl.prepare.importers.store import FileTree, first_tree, read_image
from scaleearth_pl.prepare.inject import Evidence

_LICENCE = "CC BY-NC 4.0 (GitHub says CC BY 4.0; the stricter is taken); DOTA and DIOR imagery"
_DIOR_PATCH = re.compile(r"(\d{5})_\d+")


@dataclass(frozen=True, kw_only=True)
class VrsBench(Source):
    """The annotation and image folders below `root` or `root/VRSBench`.

    Args:
        parents: folder of DOTA's label or meta files.
        captions: ask for the caption too (long answers).
    """

    kind: ClassVar[str] = "vrsbench"
    allowed_splits: ClassVar[tuple[str, ...]] = ("train", "val")

    parents: Path | None = None
    captions: bool = True

    def present(self) -> bool:
        """Whether a wanted split has its annotations."""
        return any(self._tree("Annotations", split) for split in self.splits)

    def records(self) -> Records:
        """One record an annotation file, in the order of their names."""
        parents = DotaParents(self.parents) if self.parents else None
        for split in self.splits:
            notes, images = self._tree("Annotations", split), self._tree("Images", split)
            if notes is None or images is None:
                raise ConfigError(f"no Annotations_{split} or Images_{split}", file=self.root, value=split)
            yield from (*notes.rejected(self.kind), *images.rejected(self.kind))
            for name in notes.names((".json",)):
                yield from self._image(notes, images, parents, split, name)

    def _tree(self, what: str, split: str) -> FileTree | None:
        folder = next((f for f in (self.root / "VRSBench", self.root / "vrsbench") if f.is_dir()), self.root)
        return first_tree(folder, f"{what}_{split}", f"{what}_{split}.zip")

    def _image(
        self, notes: FileTree, images: FileTree, parents: DotaParents | None, split: str, name: str
    ) -> Iterator[Found | Rejected]:
        row, item = _row(notes, name), f"{split}/{name}"
        if isinstance(row, str):
            yield self._rejected(name, "broken_json", row)
            return
        image = self._picture(images, split, row.get("image"), item)
        if isinstance(image, Rejected):
            yield image
            return
        asked = list(self._questions(row, f"{self.kind}-{Path(image.name).stem}", item))
        yield from (entry for entry in asked if isinstance(entry, Rejected))
        if qas := tuple(entry for entry in asked if isinstance(entry, Question)):
            yield self._found(image, split, qas, parents, item)
        elif not asked:
            yield self._rejected(item, "no_questions", "annotation holds neither questions nor caption")

    def _picture(self, images: FileTree, split: str, stated: Any, item: str) -> ImageRef | Rejected:
        if isinstance(stated, str) and images.find(stated) is None and images.find(f"Images_{split}/{stated}"):
            stated = f"Images_{split}/{stated}"  # the published zips hold a folder of their own name
        return images.image_or_rejected(stated, source=self.kind, item=item)

    def _questions(self, row: Row, image_id: str, item: str) -> Iterator[Question | Rejected]:
        pairs = row.get("qa_pairs") or []
        for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
            try:
                yield _question(pair, f"{image_id}-{number}")
            except SampleError as error:
                yield self._rejected(f"{item}#{number}", "bad_question", str(error))
        text = row.get("caption")
        if self.captions and isinstance(text, str) and text.strip():
            ask = "Describe this image."
            yield Question(id=f"{image_id}-caption", type="caption", family="other", question=ask, answer=text.strip())

    def _found(
        self, image: ImageRef, split: str, qas: tuple[Question, ...], parents: DotaParents | None, item: str
    ) -> Found | Rejected:
        try:
            parent, extra = parent_of(image.name, parents)
        except GsdError as error:
            return self._rejected(item, "bad_gsd", str(error))
        image_id = f"{self.kind}-{Path(image.name).stem}"
        dior = _DIOR_PATCH.match(image.name)
        dataset = "DIOR" if dior else None
        return Found(
            source=self.kind,
            split=split,
            image_id=image_id,
            image=image,
            qas=qas,
            evidence=Evidence(image_id=image_id, name=image.name, dataset=dataset, extra=extra),
            region_id=f"dota-{parent}" if parent else f"dior-{dior[1]}" if dior else None,
            licence=_LICENCE,
        )

    def _rejected(self, item: str, kind: str, reason: str) -> Rejected:
        return Rejected(source=self.kind, item=item, kind=kind, reason=reason)


def _row(notes: FileTree, name: str) -> Row | str:
    ref = notes.find(name)
    try:
        row = json.loads(read_image(ref)) if ref else None
    except (ValueError, RecursionError, SampleError) as error:
        return f"{name}: {error}"
    return row if isinstance(row, dict) else f"{name}: not an object"


def _question(pair: Any, identity: str) -> Question:
    """One pair as a question; `SampleError` where it is no object, or a field neither text nor number, or empty."""
    if not isinstance(pair, dict):
        raise SampleError("pair is not an object", field="qa_pairs", value=repr(pair)[:80])
    return Question(
        id=identity,
        type=_text(pair, "type").replace(" ", "_"),
        family="identification",
        question=_text(pair, "question"),
        answer=_text(pair, "answer"),
    )


def _text(pair: Row, field: str) -> str:
    value = pair.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SampleError("neither text nor number", field=field, value=value)
    return str(value).strip()
