"""When a run of requests is stopped, and what it counts.

Three things stop a run: a share of failed items above `max_share`; a server that answered none of `patience` items in
a row; and one that rejected each of the first `patience` (HTTP 400, as for an account without credit or a setting that
the model does not know). Going on would only quarantine the rest of the corpus for the server's fault. The share counts
what earlier runs quarantined too, so that restarting does not launder failures.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError, QuarantineLimitError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop.

    Args:
        max_share: of the items seen so far, how many may have failed.
        min_items: the share is not judged before so many items; at the end it always is.
        patience: items in a row that the server did not answer, or of the first ones that it rejected.
    """

    max_share: float = 0.05
    min_items: int = 50
    patience: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.max_share < 1:
            raise ConfigError("must lie in [0, 1)", field="max_share", value=self.max_share)
        if self.min_items < 1 or self.patience < 1:
            raise ConfigError("must be at least 1", field="min_items, patience", value=(self.min_items, self.patience))


@dataclass(kw_only=True)
class RunReport:
    """Counts of a run: jobs asked and recorded now, recorded before, failed by kind now, failed for good before."""

    asked: int = 0
    recorded_before: int = 0
    twice_in_plan: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failed_before: int = 0

    @property
    def n_failed(self) -> int:
        """Items without a result, of this run and of earlier ones."""
        return self.failed.total() + self.failed_before

    @property
    def n_seen(self) -> int:
        """Items dealt with so far."""
        return self.asked + self.recorded_before + self.n_failed

    def judge(self, limits: Limits, *, final: bool, file: Path) -> None:
        """`QuarantineLimitError` naming `file` if too large a share has failed; early on only if `final`."""
        enough = final or self.n_seen >= limits.min_items
        if enough and self.n_failed > limits.max_share * self.n_seen:
            raise QuarantineLimitError(
                f"{self.n_failed} of {self.n_seen} items failed {dict(self.failed)}",
                file=file,
                field="max_share",
                value=limits.max_share,
                remedy="read the reasons in that file; if they were the server's or the settings' fault, mend that and "
                "run again with --retry-failed; raise the share (--max-failed-share) if they can be borne",
            )
