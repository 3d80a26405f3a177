"""Bad samples: counted, named, and fatal past a stated share.

One rotten image in a hundred thousand should not end a run, and a rotten corpus should not train one in silence. A bad
sample leaves a counted hole in its step (no other sample slips into its place, so the plan stays what it was). The run
stops with `QuarantineLimitError` when more than `max_bad_share` of the split's images are bad, or `max_in_a_row` reads
failed one after the other, which is what a lost disk looks like.

The marks lie in memory that the loader's workers share, so the share is that of the whole rank. Other ranks count for
themselves; over the epochs every rank meets every image.
"""

import logging
from collections.abc import Sequence

import torch

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError, ScaleEarthError

log = logging.getLogger(__name__)


class Quarantine:
    """Keeps the books of bad samples of one split on one rank.

    Args:
        n_rows: images in the index; rows are its numbers.
        n_images: images of the split, the base of the share.
        max_bad_share: share of bad images that is tolerated, 0 to 1; 0 makes the first one fatal.
        max_in_a_row: failed reads in a row, in one worker, that are fatal.
        known_bad: rows found bad when lengths were measured.

    Raises:
        QuarantineLimitError: already the known bad ones are too many.
    """

    def __init__(
        self,
        *,
        n_rows: int,
        n_images: int,
        max_bad_share: float = 0.01,
        max_in_a_row: int = 100,
        known_bad: Sequence[tuple[int, str]] = (),
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ConfigError("a share lies between 0 and 1", field="max_bad_share", value=max_bad_share)
        self.n_images, self.max_bad_share, self.max_in_a_row = n_images, max_bad_share, max_in_a_row
        self._bad = torch.zeros(n_rows, dtype=torch.uint8).share_memory_()
        self._in_a_row = 0
        for row, _ in known_bad:
            self._bad[row] = 1
        self._check(known_bad[0][1] if known_bad else "")

    @property
    def n_bad(self) -> int:
        """Different bad images found so far, by all workers of this rank."""
        return int(self._bad.sum())

    def good(self) -> None:
        """A read succeeded: the row of failures ends."""
        self._in_a_row = 0

    def bad(self, row: int, where: str, error: ScaleEarthError) -> None:
        """A read failed: marks the image, and stops the run past the limits."""
        if not self._bad[row]:
            log.warning("quarantined %s: %s", where, error)
        self._bad[row] = 1
        self._in_a_row += 1
        self._check(f"{where}: {error}")

    def _check(self, reason: str) -> None:
        n_bad = self.n_bad
        if n_bad > self.max_bad_share * self.n_images:
            raise QuarantineLimitError(
                f"{n_bad} of {self.n_images} images are bad, the last because: {reason}",
                field="max_bad_share",
                value=self.max_bad_share,
                remedy="mend or rebuild the corpus, or raise max_bad_share",
            )
        if self._in_a_row >= self.max_in_a_row:
            raise QuarantineLimitError(
                f"{self._in_a_row} reads in a row failed, the last because: {reason}",
                field="max_in_a_row",
                value=self.max_in_a_row,
                remedy="check that the disk with the shards is still there",
            )
