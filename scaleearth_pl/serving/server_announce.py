"""A server that says where it listens once it does: with port 0 the system chooses, and nobody knows before."""

import socket
from collections.abc import Callable

import uvicorn


class AnnouncingServer(uvicorn.Server):
    """uvicorn's server; `announce` gets its port once it listens."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[int], None] | None) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        if self.started and self._announce is not None:
            self._announce(self.servers[0].sockets[0].getsockname()[1])
