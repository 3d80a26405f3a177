"""Clients that ask and do not read: a connection that takes nothing of its reply for `send_seconds` is dropped.

    bytes that wait in its buffer: none, or fewer than at the last look -> it moves;  as many or more -> the clock runs

The look is at connections and not at the application's `send`, because uvicorn writes the last bytes of a reply without
waiting for them and closes a connection only once its buffer is empty: a client that does not read would hold the end
of the process after the application has sent everything. A dropped connection ends its request as if the client had
left, so the place in the queue is given back.

The price: the kernel asks for more once a third of its own buffer (4 MiB at most) is free, so a client slower than
about 20 kB/s seems to stand still where a reply is larger than that buffer.
"""

import asyncio
import logging
import time
from collections.abc import Collection
from typing import NamedTuple, Protocol

_LOG = logging.getLogger(__name__)

_LOOKS = 10
"""In the time allowed: a stalled connection is dropped a tenth late at most."""


class Connection(Protocol):
    """What is needed of uvicorn's connections."""

    transport: asyncio.Transport


class _Waiting(NamedTuple):
    size: int
    since: float


class StallWatch:
    """Drops those of `connections`, a collection that changes, that have not moved for `seconds`."""

    def __init__(self, connections: Collection[Connection], seconds: float) -> None:
        self._connections, self._seconds = connections, seconds
        self._waiting: dict[asyncio.Transport, _Waiting] = {}

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds / _LOOKS)
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """One look, at a time in seconds."""
        before, self._waiting = self._waiting, {}
        for transport in [connection.transport for connection in self._connections]:
            size, last = transport.get_write_buffer_size(), before.get(transport)
            since = last.since if last and size >= last.size else now
            if size and now - since >= self._seconds:
                self._drop(transport, size)
            elif size:
                self._waiting[transport] = _Waiting(size, since)

    def _drop(self, transport: asyncio.Transport, size: int) -> None:
        client = transport.get_extra_info("peername")
        _LOG.warning("client %s took nothing for %g s: dropped, %d bytes unsent", client, self._seconds, size)
        transport.abort()  # close() would wait for the client
