"""Peak memory of a piece of work, from the allocator's own records: exact and repeatable, unlike resident set size.

torch's profiler notes every allocation and release of the allocator; their running sum, and its highest point, is what
the work needed on top of what stood before. Memory inside libraries (thread pools, oneDNN's scratch) is not seen.
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """Highest number of bytes that `work` held at a time, above what was allocated before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest
