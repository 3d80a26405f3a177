"""Loading a model without the loaders' own chatter on standard error."""

import logging


def silence_loading() -> None:
    """No progress bars of transformers, no word of a kernel that bitsandbytes tries; call it in commands only."""
    import transformers

    transformers.logging.disable_progress_bar()
    # It looks for an optional kernel on AVX512-BF16 hosts; its own fallback is exact.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
