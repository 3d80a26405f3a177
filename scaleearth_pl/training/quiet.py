"""Silences messages of libraries that are known, checked, and would bury our own; each with its reason.

Nothing is silenced that speaks of the user's data, configuration or results.
"""

import logging
import warnings

from scaleearth_pl.model.backbone import silence_loading

_MESSAGES = (
    (r".*isinstance\(treespec, LeafSpec\).*", "torch renamed a class that lightning 2.6 still uses"),
    (r".*module\(s\) in eval mode at the start of training.*", "frozen backbone blocks load in eval mode"),
    (r".*recommended to use `self.log\(.*sync_dist=True.*", "accuracies are synchronised inside the metric"),
    (r".*args parameter is intended to run from within Python.*", "our own main() hands the arguments on"),
    (r".*does not have many workers.*", "the reading plan decides; `throughput/wait_share` shows whether more help"),
    (r".*Consider setting `persistent_workers=True`.*", "workers are started once a run where the run is one epoch"),
    (r".*Checkpoint directory .* exists and is not empty.*", "a resumed run writes where it wrote before"),
)


def silence_known_noise() -> None:
    """Lowers the named loggers to warnings and ignores the named warnings; call once per process."""
    silence_loading()
    # "Seed set", "GPU available", advertisements: the preflight table says what is in effect.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message, _reason in _MESSAGES:
        warnings.filterwarnings("ignore", message=message)
