"""Clients that do not read: they lose their connection, not the server its places or its end."""

import json
import socket
from dataclasses import dataclass, field

import pytest
from server_fakes import CHAT, chat, serving, wait_for

from scaleearth_pl.serving.server_stalls import StallWatch


@pytest.fixture
def link():
    with socket.socket() as link:  # closed after the server has ended
        yield link


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_gives_its_place_back(earth, link, stream, caplog):
    with serving(earth, max_queue=1, send_seconds=0.5) as running:
        _ask_and_do_not_read(link, running, stream)
        wait_for(lambda: running.service.accepted == 0)
        assert running.post(chat())[0] == 200
    (record,) = [r for r in caplog.records if r.name == "scaleearth_pl.serving.server_stalls"]
    assert "took nothing for 0.5 s" in record.getMessage()


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopping_server_does_not_wait_for_a_client_that_does_not_read(earth, link, stream):
    with serving(earth, send_seconds=0.5) as running:  # whose end waits for the server's own
        _ask_and_do_not_read(link, running, stream)
        running.service.stop()
    assert running.service.accepted == 0


def _ask_and_do_not_read(link, running, stream):
    body = json.dumps(chat(None, questions=["Forest?"] * 128, stream=stream)).encode()
    _small_buffers(link, running.server)
    link.connect(("127.0.0.1", running.port))
    link.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    wait_for(lambda: running.service.accepted == 1)


def _small_buffers(link, server):
    """The kernel takes a few kilobytes for the client, not megabytes; an accepted socket inherits its listener's."""
    server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


@dataclass(eq=False)
class Transport:
    """A connection whose waiting bytes the test says."""

    size: int = 0
    dropped: bool = False
    transport: "Transport" = field(init=False)

    def __post_init__(self):
        self.transport = self

    def get_write_buffer_size(self):
        return self.size

    def get_extra_info(self, _):
        return ("127.0.0.1", 1)

    def abort(self):
        self.dropped = True


@pytest.mark.parametrize(
    ("sizes", "dropped"),
    [
        ([100] * 5, True),
        ([100, 200, 200, 300, 300], True),  # the server writes on
        ([100, 90, 80, 70, 60, 50, 40, 30], False),
        ([100, 200, 150, 300, 300, 250, 400, 400], False),  # slowly, while the server writes on
        ([100, 100, 100, 0, 100, 100, 100, 0], False),
        ([0] * 8, False),
    ],
)
def test_only_what_stands_still_is_dropped(sizes, dropped):
    client = Transport()
    watch = StallWatch([client], seconds=4.0)
    for second, client.size in enumerate(sizes):
        watch.look(float(second))
        assert client.dropped == (dropped and second >= 4)
