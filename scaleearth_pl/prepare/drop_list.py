"""The list of images to leave out: one id a line, as `scaleearth leakage --drop` or a person wrote it.

A list made of a merged corpus names coarse views, `<id>@x<k>`. An archive holds no views, so such an id stands for its
image, and all that was averaged from it stays out with it. An id that matches nothing is usually a misspelt one, whose
copy of a test image would stay in without a word: the import says how many there are.
"""

import json
import logging
from pathlib import Path

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.files import lines_of
from scaleearth_pl.prepare.importers.tally import DROPPED
from scaleearth_pl.prepare.views import image_id_of_view

_NAMED = 3
_log = logging.getLogger(__name__)


def read_drop(path: Path) -> frozenset[str]:
    """Ids of the list without the white space around them, and of views those of their images as well.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        lines = lines_of(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"list of images to drop cannot be read: {reason}", file=path) from error
    ids = {line.strip() for line in lines if line.strip()}
    return frozenset(ids | {image_id_of_view(image_id) for image_id in ids})


def warn_of_unmatched(drop: frozenset[str], quarantine: Path) -> None:
    """Logs how many ids of a list no image had, by what an import wrote to its quarantine."""
    if not drop:
        return
    with quarantine.open(encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        matched = {image_id_of_view(row["item"]) for row in rows if row["kind"] == DROPPED}
    if unmatched := sorted({image_id_of_view(image_id) for image_id in drop} - matched):
        named = ", ".join(unmatched[:_NAMED]) + (", ..." if len(unmatched) > _NAMED else "")
        _log.warning("drop: %d ids of the list match no image of this import: %s", len(unmatched), named)
