"""What a checkpoint remembers of the data: names and hashes, no position.

The position is `trainer.global_step`. The rest only has to be *the same*: a plan is a pure function of these fields,
so a resumed run reads on where it stopped if they agree, and something else, in silence, if they do not.
"""

from dataclasses import asdict
from typing import Any

from scaleearth_pl.core.errors import CheckpointError
from scaleearth_pl.data.controls import Controls
from scaleearth_pl.data.lengths import Lengths
from scaleearth_pl.data.plan import PlanSettings

STATE_SCHEMA = "scaleearth-data/1"
REMEDIES = {
    "rejected_samples": "samples that could not be read when the run began can be read now, or the other way round; start "
    "a new run"
}
"""Where restoring is not what helps; by field."""


def state_of(
    settings: PlanSettings, *, index_hash: str, lengths: Lengths, limit_images: int | None, controls: Controls | None
) -> dict[str, Any]:
    """Everything the order depends on, as plain values that `weights_only` loading accepts.

    Controls and samples that could not be measured are named only where there are some, so that the state of every other
    run is what it always was.
    """
    return {
        "schema": STATE_SCHEMA,
        "index_hash": index_hash,
        "lengths_key": lengths.key,
        "limit_images": limit_images,
        **asdict(settings),
        **({"rejected_samples": lengths.rejected_hash} if lengths.rejected else {}),
        **({"controls": asdict(controls)} if controls and controls != Controls() else {}),
    }


def refuse_changed(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """`CheckpointError` naming the first field in which a checkpoint's state differs from this run's."""
    for name in sorted({*saved, *now}):
        if saved.get(name) != now.get(name):
            raise CheckpointError(
                f"the checkpoint was written with another {name}: resuming would change the order of the data",
                field=name,
                value=(saved.get(name), now.get(name)),
                remedy=REMEDIES.get(
                    name, "restore corpus and settings, or start a new run (init_from takes the weights)"
                ),
            )
