"""`bank.json`: which folded adapter serves which GSD, and at what cost.

    {"schema": "scaleearth-bank/1", "base": ..., "processor": {"min_pixels": ..., "max_pixels": ...},
     "entries": [{"name": "gsd-0p5m", "gsd_m": 0.5, "sigma_log10": 0.0, "low_m": 0.456, "high_m": 0.548,
                  "gate_error": 0.039, "update_error": 0.031, ...}],
     "policy_errors": [{"policy": "predicted", "sigma_log10": 0.5, "gate_error": ..., "update_error": ...}]}

All GSDs here are metres per pixel *seen by the server's model*, which is what the gate was trained on. A client
therefore resizes first, to a size that the server's own processor leaves alone, and derives the GSD from that size
(`request_for`): an adapter chosen by the file's GSD would be wrong by the resize factor. Needs neither torch nor a model.
"""

import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from PIL import Image

from scaleearth_pl.core.errors import CheckpointError, GsdError
from scaleearth_pl.core.files import write_json
from scaleearth_pl.core.gsd import check_gsd_m, effective_gsd_m

BANK = "bank.json"
BANK_SCHEMA = "scaleearth-bank/1"


@dataclass(frozen=True, kw_only=True)
class BankEntry:
    """One folded adapter: the scale it is folded at, the cell [low_m, high_m] that it serves, and its errors there.

    `gate_error` is the largest change of any gate inside the cell, `update_error` that of the whole update (relative);
    `difference_to_gated` and `difference_to_base` are of logits, relative to the largest, measured at export; None if
    that was skipped. `difference_absolute` is the former in logits.
    """

    name: str
    gsd_m: float
    sigma_log10: float
    low_m: float
    high_m: float
    gate_error: float
    update_error: float
    n_bytes: int
    difference_to_gated: float | None = None
    difference_to_base: float | None = None
    difference_absolute: float | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyError:
    """What a bank without a sigma axis gets wrong where the gate would know its uncertainty, worst over the grid."""

    policy: str
    sigma_log10: float
    gate_error: float
    update_error: float


@dataclass(frozen=True, kw_only=True)
class Bank:
    """A folder of folded adapters, each in a subfolder of its entry's name."""

    base: str
    adapter: str
    processor: dict[str, Any]
    dtype: str
    tolerance: float | None
    entries: tuple[BankEntry, ...]
    policy_errors: tuple[PolicyError, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=("GSDs are metres per pixel seen by the model, after its resizing",))

    def write(self, folder: Path) -> None:
        """Writes `bank.json`."""
        write_json(folder / BANK, {"schema": BANK_SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads `bank.json`; `CheckpointError` where it is absent, cut, or of another schema."""
        file = folder / BANK
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            if row.pop("schema") != BANK_SCHEMA:
                raise CheckpointError("bank of another schema", file=file, field="schema", remedy="export it again")
            row["entries"] = tuple(BankEntry(**entry) for entry in row["entries"])
            row["policy_errors"] = tuple(PolicyError(**entry) for entry in row["policy_errors"])
            return cls(**{**row, "notes": tuple(row["notes"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"not a bank: {error!r}", file=file, remedy="export it again") from error

    def choose(self, gsd_m: float, *, sigma_log10: float = 0.0) -> BankEntry:
        """The adapter for a GSD of the pixels that the server's model will see.

        Raises:
            GsdError: outside of every cell: the bank does not know what happens there.
        """
        check_gsd_m(gsd_m)
        inside = [e for e in self.entries if e.low_m * (1 - 1e-9) <= gsd_m <= e.high_m * (1 + 1e-9)]
        if not inside:
            span = min(e.low_m for e in self.entries), max(e.high_m for e in self.entries)
            raise GsdError(
                f"the bank serves {span[0]:.4g} to {span[1]:.4g} m per pixel",
                field="gsd_m",
                value=gsd_m,
                remedy="export a wider grid, or one more adapter with --gsd-m",
            )
        return min(
            inside, key=lambda e: (abs(e.sigma_log10 - sigma_log10), abs(math.log10(e.gsd_m) - math.log10(gsd_m)))
        )


@dataclass(frozen=True, kw_only=True)
class ServerRequest:
    """What a client sends: the adapter's name as `model`, the image as PNG; and the effective GSD that chose it."""

    model: str
    png: bytes
    gsd_m: float


def request_for(
    image: Image.Image,
    native_size: tuple[int, int],
    gsd_m_native: float,
    bank: Bank,
    *,
    seen_size: tuple[int, int],
    sigma_log10: float = 0.0,
) -> ServerRequest:
    """Resizes on the client and picks the adapter by the GSD of what is left.

    Args:
        image: RGB pixels, as read.
        native_size: (width, height) of the file.
        gsd_m_native: metres per pixel of the file.
        bank: from `Bank.read`.
        seen_size: (width, height) that the model shall see: `Processor.seen_size`, a multiple of its token size inside
            its pixel limits, which a server's processor with the same limits leaves as it is.
        sigma_log10: how sure the GSD is; matters only to a bank with a sigma axis.
    """
    gsd_m = effective_gsd_m(gsd_m_native, native_size, seen_size)
    entry = bank.choose(gsd_m, sigma_log10=sigma_log10)
    stream = io.BytesIO()
    resized = image if image.size == seen_size else image.resize(seen_size, Image.Resampling.BICUBIC)
    resized.convert("RGB").save(stream, format="PNG")
    return ServerRequest(model=entry.name, png=stream.getvalue(), gsd_m=gsd_m)
