"""`scaleearth leakage TRAIN_ROOT --against EVAL_ROOT...`: did training see the evaluation's images?

Three questions, by pixels and not by names (a copy rarely keeps its name):

    leak       an image of a training split is a copy of one of an evaluation split, here or in another corpus
    duplicate  two images of one training split are copies of each other and of different places (views of one place are
               meant, and so is an image that both stages of training see: an image of `stage1` may be one of `train`)
    coverage   how much of each evaluation split training holds; all of it means that the split was imported

and one by counting: RSVQA LR and HR hold 77,232 and 1,066,316 questions over *all* splits, together the "about 1.14 M" of the
paper's corpus. Training splits that exceed train and val contain a test split, even if no evaluation set is at hand.

JSON lines on standard output, counts on standard error. `--drop FILE` writes the ids of the training images to leave out,
one a line (the leaking ones, and of two duplicates the one whose GSD is known less well, else the later one);
`drop_list.py` reads them. Exit status: 0 clean, 3 leaks,
4 no leak but duplicates or images that could not be read, 2 bad input. What counts as a copy: `core/imagehash.py`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scaleearth_pl.core.console import command, console, progress
from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import write_text
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.core.imagehash import MIN_CORRELATION, ORIENTATIONS, correlation, near_pairs
from scaleearth_pl.core.sample import TRAINED_SPLITS
from scaleearth_pl.data.shard_index import ShardIndex
from scaleearth_pl.prepare.prints import Prints, count_images, read_prints

OFFICIAL_TOTALS = {("rsvqa_lr",): (77_232, 0.9), ("rsvqa_hr", "rsvqa_hr_phili"): (1_066_316, 0.76)}
"""Questions of all official splits of a data set (Lobry et al. 2020), tests included, by the sources that hold them; and
the share of them that only a test split can make up.

Train and val hold 87 % of LR (all but its test's 10,004) and, by the published shares, 73 % of HR; with a test split they
hold all of LR, and of HR 80 % with the smaller test and 93 % with the larger. Price: training without val hides a test from
the count (LR: 89 % of the images, HR with the smaller one: 68 %); pixels find it.
"""

_TRUST = tuple(Provenance)
"""How well a GSD is known, best first."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Two images that are copies; `distance` in bits of 256, `correlation` of the thumbnails.

    Of a duplicate, `image_id` is the one to keep.
    """

    kind: str
    image_id: str
    split: str
    other_image_id: str
    other_split: str
    other_root: str
    orientation: str
    distance: int
    correlation: float


def copies(train: Prints, other: Prints, *, kind: str) -> Iterator[Match]:
    """Every pair of copies, each once, in its best orientation; `other is train` compares a set with itself.

    Pairs of one set are left out where they share a place (views of one place are no accident) or belong to two splits
    (to see an image in both stages of training is no leak). Of such a pair the image of the better known GSD comes
    first, and pairs come in the order of what is known best, so that the first is what to keep.
    """
    best: dict[tuple[int, int], tuple[int, int, float]] = {}
    for turn in range(len(ORIENTATIONS)):
        for i, j, distance in near_pairs(train.hashes[:, 0], other.hashes[:, turn]):
            if other is train and not _may_be_duplicate(train, i, j):
                continue
            if (i, j) in best and best[i, j][0] <= distance:
                continue
            r = correlation(train.thumbnail[i], other.thumbnail[j], turn)
            if r >= MIN_CORRELATION:
                best[i, j] = (distance, turn, r)
    for (i, j), (distance, turn, r) in sorted(best.items(), key=partial(_rank, train) if other is train else None):
        yield Match(
            kind=kind,
            image_id=train.image_id[i],
            split=train.split[i],
            other_image_id=other.image_id[j],
            other_split=other.split[j],
            other_root=str(other.root),
            orientation=ORIENTATIONS[turn],
            distance=distance,
            correlation=round(r, 4),
        )


def coverage(leaks: Iterable[Match], other: Prints) -> Iterator[dict[str, Any]]:
    """For each evaluation split of `other`, how many of its readable images the training splits hold; how many are not."""
    images = Counter(split for _, split in set(zip(other.image_id, other.split, strict=True)))
    unread = Counter(one.split for one in other.unreadable)
    found: dict[str, set[str]] = {split: set() for split in (*images, *unread)}
    for leak in leaks:
        found[leak.other_split].add(leak.other_image_id)
    for split in sorted(found):
        yield {
            "kind": "coverage",
            "root": str(other.root),
            "split": split,
            "images": images[split],
            "found": len(found[split]),
            "unreadable": unread[split],
            "note": _coverage_note(split, len(found[split]), images[split], unread[split]),
        }


def _coverage_note(split: str, found: int, images: int, unread: int) -> str:
    note = "training holds none of this split"
    if found:
        share = "ALL" if found == images else f"{found / images:.1%}"
        note = f"training holds {share} of the evaluation split {split!r}"
    return f"{note}; {unread} of its images could not be read, which proves nothing of them" if unread else note


def whole_sources(index: ShardIndex, splits: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Data sets with more questions in `splits` than the official train and val hold, so that a test is inside."""
    count: Counter[str] = Counter()
    for row in index.rows(tuple(splits)):
        count[index.text["source"][row]] += int(index.number["n_questions"][row])
    for sources, (total, share) in OFFICIAL_TOTALS.items():
        questions = sum(count[source] for source in sources)
        if questions >= share * total:
            note = f"more questions than train and val of {sources[0]} hold: a test split is inside"
            yield {"kind": "whole_source", "source": sources[0], "questions": questions, "total": total, "note": note}


def check(
    root: Path,
    against: Sequence[Path] = (),
    *,
    splits: Sequence[str] = TRAINED_SPLITS,
    within: bool = True,
    observe: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """All findings about the corpus `root` as JSON-ready rows: leaks, coverage, duplicates, what was not readable.

    Args:
        root: corpus that is trained on.
        against: corpora (all their splits but `splits`) or folders of images; the other splits of `root` always count.
        splits: names of training splits, in `root` and elsewhere.
        within: look for duplicates among the training images, too.
        observe: called after every image.

    Raises:
        ConfigError: `root` has none of `splits`, or an evaluation set holds nothing else.
        IndexSchemaError, ShardError: a corpus is broken.
    """
    index = ShardIndex.load(root)
    training = [split for split in index.splits if split in splits]
    if not training:
        raise ConfigError("corpus has no training split", file=root, value=index.splits, remedy="name it: --splits")
    yield from whole_sources(index, training)
    own = read_prints(root, observe=observe)
    train = own.of_splits(lambda split: split in splits)
    yield from _unreadable(own)
    sets = [own, *(read_prints(path, observe=observe) for path in against if path.resolve() != root.resolve())]
    for other in sets:
        held_out = other.of_splits(lambda split: split not in splits)
        if other is not own:
            yield from _unreadable(other)
            _refuse_empty(other, held_out)
        leaks = list(copies(train, held_out, kind="leak"))
        yield from map(asdict, leaks)
        yield from coverage(leaks, held_out)
    if within:
        yield from map(asdict, copies(train, train, kind="duplicate"))


def dropped(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Ids of training images to leave out, sorted: those that leak, and of two duplicates the second (`copies` orders them)."""
    out: set[str] = set()
    for row in rows:
        if row["kind"] == "leak":
            out.add(row["image_id"])
        elif row["kind"] == "duplicate" and row["image_id"] not in out:
            out.add(row["other_image_id"])
    return sorted(out)


def exit_status(kinds: Iterable[str]) -> int:
    """0 clean, 3 a leak or a whole source, 4 a duplicate or something unreadable."""
    found = set(kinds)
    return 3 if found & {"leak", "whole_source"} else 4 if found & {"duplicate", "unreadable"} else 0


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scaleearth leakage", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="corpus that is trained on")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="corpora or folders of evaluation images")
    parser.add_argument("--splits", nargs="+", default=list(TRAINED_SPLITS), help="splits that are trained on")
    parser.add_argument("--no-within", action="store_true", help="do not look for duplicates inside training")
    parser.add_argument("--drop", type=Path, help="writes the ids of training images to leave out")
    args = parser.parse_args(argv)
    rows, total = list[dict[str, Any]](), sum(count_images(path) for path in (args.root, *args.against))
    with progress("fingerprints", total, transient=True) as advance:
        for row in check(args.root, args.against, splits=args.splits, within=not args.no_within, observe=advance):
            sys.stdout.write(json.dumps(row, allow_nan=False) + "\n")
            rows.append(row)
    if args.drop:
        write_text(args.drop, "".join(f"{image_id}\n" for image_id in dropped(rows)))
    counts = Counter(row["kind"] for row in rows)
    words = (f"{counts[kind]:,} {kind}" for kind in ("leak", "duplicate", "unreadable", "whole_source"))
    console(stderr=True).print(", ".join(words))
    return exit_status(counts)


def _may_be_duplicate(prints: Prints, i: int, j: int) -> bool:
    """Each pair once, the one to keep first; only within a split, and of different places."""
    known = [(_TRUST.index(prints.provenance[k]), k) for k in (i, j)]
    return prints.split[i] == prints.split[j] and prints.place_id[i] != prints.place_id[j] and known[0] < known[1]


def _rank(prints: Prints, found: tuple[tuple[int, int], object]) -> tuple[int, int, int]:
    i, j = found[0]
    return _TRUST.index(prints.provenance[i]), i, j


def _refuse_empty(other: Prints, held_out: Prints) -> None:
    """`ConfigError` where an evaluation set has no image that could be looked at."""
    if not len(held_out):
        unread = len(held_out.unreadable)
        raise ConfigError(
            "nothing to evaluate on in here",
            file=other.root,
            field="split",
            value={*other.split, *(one.split for one in other.unreadable)},
            remedy=f"{unread} images could not be read: the rows before this say why" if unread else "name another set",
        )


def _unreadable(prints: Prints) -> Iterator[dict[str, Any]]:
    for one in prints.unreadable:
        yield {"kind": "unreadable", "root": str(prints.root), "image_id": one.image_id, "note": one.reason}


if __name__ == "__main__":
    raise SystemExit(main())
