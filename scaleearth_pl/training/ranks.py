"""Whether there are other ranks to talk to."""

import torch.distributed as dist


def in_group() -> bool:
    """True where this process belongs to a process group, be it a group of one."""
    return dist.is_available() and dist.is_initialized()
