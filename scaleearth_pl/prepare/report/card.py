"""The data card: what a person must know before training on a corpus or quoting a number from it, in Markdown.

Every sentence is derived from the shards. The limits are not boilerplate: each is printed only where the numbers call
for it, so that a short list means something.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.core.sample import TRAINED_SPLITS
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.prepare.leakage import whole_sources
from scaleearth_pl.prepare.report.stats import NO_LICENCE, CorpusStats, Range

CONTINUITY_DECADES = 1.0
"""Span of log10 GSD below which a corpus says nothing about a continuous scale."""


def data_card(index: ShardIndex, stats: CorpusStats, *, rejected: int, figures: Sequence[Path]) -> str:
    """The card's text.

    Args:
        index: of the corpus.
        stats: its counters.
        rejected: samples that the index lists as left out.
        figures: PNGs to show, beside the card.
    """
    n_bytes = sum({shard.file: shard.n_bytes for shard in index.shards}.values())
    parts = [
        f"# Data card: {index.corpus}",
        f"{stats.n_images:,} images with {stats.n_questions:,} questions ({stats.n_questions / stats.n_images:.1f} an image, "
        f"at most {stats.most_questions:,}) from {len(stats.sources)} sources; {_size(n_bytes)} in "
        f"{len({s.file for s in index.shards}):,} shards.",
        "\n".join(f"![{path.stem}]({path.name})" for path in figures),
        "## Splits and tiers",
        _splits(stats),
        f"Tiers by native GSD: high < {index.boundaries.high_below_m:g} m <= mid < {index.boundaries.mid_below_m:g} m <= low. "
        f"Places that lie in more than one split: {stats.n_shared_places:,}.",
        "## Sources",
        _sources(stats),
        "## Where the GSD comes from",
        _provenance(stats),
        "Sigma is in decades of metres per pixel; the last column is the weight of these images in the loss of SSE-U.",
        "## Questions",
        _families(stats),
        _types(stats),
        "## Licences",
        _licences(stats),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in limits(index, stats, rejected=rejected)) or "None that the numbers show.",
        "## Hashes",
        _table(
            ("what", "value"),
            [("index.json (SHA-256)", f"`{index.hash}`"), ("content hash of the builder", f"`{index.content_hash}`")],
        ),
        "`index.json` holds the SHA-256 of every shard and the CRC-32 of every member; reading checks the latter.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def limits(index: ShardIndex, stats: CorpusStats, *, rejected: int) -> Iterator[str]:
    """Sentences about what this corpus cannot show, each only where its numbers say so."""
    gsds = [g for of in stats.sources.values() for g in (of.gsd_m.low, of.gsd_m.high) if g is not None]
    distinct = {round(x * 100) for x in (cell.position[0] for cell in stats.landscape.values())}
    if gsds and (len(distinct) < 3 or max(gsds) / min(gsds) < 10**CONTINUITY_DECADES):
        found = ", ".join(f"{g:g} m" for g in sorted(set(gsds))[:4])
        yield f"Few GSDs ({found}): no evidence about continuity of the scale gate."
    for provenance in (Provenance.NOMINAL, Provenance.IMPRECISE, Provenance.UNKNOWN):
        share = stats.provenance[str(provenance)] / stats.n_images
        if share:
            yield f"{share:.1%} of the images have a GSD that is {provenance}."
    for tier in (Tier.HIGH, Tier.MID, Tier.LOW):
        if not stats.total(stats.questions, tier=str(tier)):
            yield f"No question in tier {tier}."
    for family in ("scale_specific", "discriminative"):
        if not any(f == family for _, f in stats.families):
            yield f"No {family.replace('_', '-')} question."
    largest = stats.by_source()[0]
    share = stats.total(stats.questions, source=largest) / stats.n_questions
    if len(stats.sources) > 1 and share > 0.6:
        yield f"{share:.0%} of the questions come from {largest}: weigh the sources, or it decides every average."
    if stats.located_images < stats.n_images:
        yield f"{stats.n_images - stats.located_images:,} images state no coordinates: the map does not show them."
    if stats.n_shared_places:
        yield f"{stats.n_shared_places:,} places lie in several splits: intervals and tests over splits are not independent."
    training = [split for split in index.splits if split in TRAINED_SPLITS]
    yield from (f"{row['source']}: {row['note']}." for row in (whole_sources(index, training) if training else ()))
    unstated = stats.licences[NO_LICENCE]
    if unstated:
        yield f"{unstated:,} images state no licence."
    if rejected or stats.unreadable:
        yield f"{rejected + len(stats.unreadable):,} samples were left out as unreadable."
    yield "Copies between training and evaluation are not looked for here: `python -m scaleearth_pl.prepare.leakage`."


def _splits(stats: CorpusStats) -> str:
    tiers = [str(t) for t in Tier if stats.total(stats.images, tier=str(t))]
    splits = sorted({split for _, split, _ in stats.images})
    rows = [
        (
            split,
            f"{stats.total(stats.images, split=split):,}",
            f"{stats.total(stats.questions, split=split):,}",
            *(f"{stats.total(stats.questions, split=split, tier=tier):,}" for tier in tiers),
        )
        for split in splits
    ]
    return _table(("split", "images", "questions", *(f"of them {tier}" for tier in tiers)), rows)


def _sources(stats: CorpusStats) -> str:
    rows = []
    for source in stats.by_source():
        of, images = stats.sources[source], stats.total(stats.images, source=source)
        shares = ", ".join(f"{name} {n / images:.0%}" for name, n in of.provenance.most_common())
        rows.append(
            (
                source,
                f"{images:,}",
                f"{stats.total(stats.questions, source=source):,}",
                _range(of.gsd_m),
                _range(of.side_px),
                shares,
                ", ".join(sorted(of.sensors)) or "not stated",
            )
        )
    return _table(("source", "images", "questions", "native GSD, m", "side, px", "provenance", "sensor"), rows)


def _provenance(stats: CorpusStats) -> str:
    rows = [
        (
            str(p),
            f"{stats.provenance[str(p)]:,}",
            f"{stats.provenance[str(p)] / stats.n_images:.1%}",
            f"{stats.provenance_questions[str(p)]:,}",
            _range(stats.sigma[str(p)]) if str(p) in stats.sigma else "none",
            f"{p.nll_weight:g}",
        )
        for p in Provenance
        if stats.provenance[str(p)]
    ]
    return _table(("provenance", "images", "share", "questions", "sigma", "weight"), rows)


def _families(stats: CorpusStats) -> str:
    tiers = [str(t) for t in Tier if stats.total(stats.questions, tier=str(t))]
    families = sorted({family for _, family in stats.families})
    rows = [
        (
            f.replace("_", "-"),
            f"{sum(stats.families[t, f] for t in tiers):,}",
            *(f"{stats.families[t, f]:,}" for t in tiers),
        )
        for f in families
    ]
    return _table(("family", "questions", *tiers), rows)


def _types(stats: CorpusStats, most: int = 20) -> str:
    rows = [(name, family.replace("_", "-"), f"{n:,}") for (family, name), n in stats.types.most_common(most)]
    more = len(stats.types) - len(rows)
    return _table(("type", "family", "questions"), rows) + (
        f"\n\n{more} rarer types are not listed." if more > 0 else ""
    )


def _licences(stats: CorpusStats) -> str:
    rows = [
        (licence, f"{n:,}", ", ".join(s for s in stats.by_source() if licence in stats.sources[s].licences))
        for licence, n in stats.licences.most_common()
    ]
    return _table(("licence", "images", "sources"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _range(found: Range) -> str:
    if found.low is None or found.high is None:
        return "unknown"
    return f"{found.low:.4g}" if found.low == found.high else f"{found.low:.4g} to {found.high:.4g}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
