"""Control experiments on the training data: what a model learns if the data are made worse on purpose.

A method can win for reasons other than the one it claims. Two of them lie in the data, and each has a control here that
changes one thing and leaves everything else (images, order of the plan, optimizer steps) as it was:

    shuffle_gsd        every training image carries the GSD of another one. If the gate still helped, it would help by
                       being a gate; that the number it reads is *this* image's scale would then be of no use.
    without_families   questions of these families are not asked in training. Without the scale-specific and the
                       discriminative ones, what is left can be answered without knowing the scale: the price of the
                       paper's "GSD-conditioned data".

Controls touch the *training* split only: validation and test see true metadata and all questions. The shuffle is one
random cycle through the images of a split, so no image keeps its own GSD and the split keeps exactly the GSDs it had;
gate, text of baseline B3 and SSE-U's label all read the shuffled value, with its provenance and sigma. Its price: SSE-U
then learns from labels that have nothing to do with the image, and can only state the prior.

Legend: R rows (images), Q questions.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.core.gsd import Tier
from scaleearth_pl.core.sample import FAMILIES, Sample
from scaleearth_pl.data.lengths import Lengths
from scaleearth_pl.data.shards import ShardIndex, ShardReader


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What is withheld from training, or falsified; the default is neither.

    Attributes:
        shuffle_gsd: every training image is told, and labelled with, the GSD of another one of its split.
        without_families: families of questions that training never asks.
    """

    shuffle_gsd: bool = False
    without_families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.without_families) - set(FAMILIES))
        if unknown:
            raise ConfigError(
                "unknown family of questions",
                field="controls.without_families",
                value=unknown[0],
                remedy=f"families are {', '.join(FAMILIES)}",
            )
        if set(self.without_families) >= set(FAMILIES):
            raise ConfigError("no question is left to train on", field="controls.without_families")


def asked_questions(index: ShardIndex, lengths: Lengths, without_families: tuple[str, ...]) -> NDArray[np.bool_]:
    """Which questions of `lengths` are asked [Q]; False for those of the families left out.

    Reads every sample's JSON once more (families are not in the lengths' sidecar): under a second for the world, about
    half a minute for 1.5 million questions. A sample that has become unreadable keeps its questions, and is quarantined
    where it is read.

    Raises:
        ConfigError: no question is of these families, so that the control would change nothing.
    """
    keep_Q = np.ones(len(lengths.branch_Q), bool)
    reader = ShardReader(index)
    for row, first in zip(lengths.rows.tolist(), lengths.first_Q.tolist(), strict=False):
        try:
            asked = [question.family not in without_families for question in reader.read_sample(row).qas]
        except (SampleError, GsdError):
            continue
        keep_Q[first : first + len(asked)] = asked
    reader.close()
    if without_families and keep_Q.all():
        raise ConfigError(
            "the corpus has no question of these families: leaving them out changes nothing",
            file=index.root,
            field="controls.without_families",
            value=list(without_families),
        )
    return keep_Q


def scale_donors(index: ShardIndex, rows: NDArray[np.int64], *, seed: int) -> dict[int, int]:
    """For every row with a known GSD, the row of the same split whose GSD it is told; a pure function of its arguments.

    One cycle through the rows in random order: a permutation without a fixed point. Rows of unknown GSD are left out.

    Raises:
        ConfigError: a split has a single image of known GSD.
    """
    known = [row for row in np.unique(rows).tolist() if index.tier_of_row(row) is not Tier.UNKNOWN]
    splits = np.array([index.shards[int(index.shard_of_row[row])].split for row in known])
    donors: dict[int, int] = {}
    for split in np.unique(splits).tolist():
        members = np.array(known, np.int64)[splits == split]
        if len(members) < 2:
            raise ConfigError(
                "a GSD needs a second image to be swapped with",
                file=index.root,
                field="controls.shuffle_gsd",
                value=split,
                remedy="use a larger split or limit_images",
            )
        order = np.random.default_rng([seed, zlib.crc32(split.encode())]).permutation(members)
        donors |= dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    return donors


def with_scale_of(sample: Sample, donor: Sample) -> Sample:
    """The sample with everything that says its GSD taken from `donor`; image, questions and ids stay its own."""
    return replace(
        sample,
        gsd_m_native=donor.gsd_m_native,
        gsd_sigma_log10=donor.gsd_sigma_log10,
        gsd_provenance=donor.gsd_provenance,
        tier=donor.tier,
    )
