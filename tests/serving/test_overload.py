"""More than the server can do: every request is answered or refused with a status; none is lost, none waits unseen."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from server_fakes import CHAT, chat, data_url, message, serving, wait_for
from serving_fakes import png


class Held:
    """The engine, whose passes wait until the test lets them go."""

    def __init__(self, earth) -> None:
        self._earth, self.go, self.busy = earth, threading.Event(), False

    def __getattr__(self, name):
        return getattr(self._earth, name)

    def run(self, prepared, **kwargs):
        self.busy = True
        assert self.go.wait(240)
        return self._earth.run(prepared, **kwargs)


@pytest.fixture
def held(earth):
    engine = Held(earth)
    yield engine
    engine.go.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_answers_429_and_loses_nothing(held, stream):
    with serving(held, max_queue=6, max_batch=2) as running, ThreadPoolExecutor(30) as pool:
        body = json.dumps(chat(stream=stream)).encode()
        asked = [pool.submit(running.send, "POST", CHAT, body) for _ in range(30)]
        wait_for(lambda: sum(future.done() for future in asked) == 24)  # refused at once, while the engine stands still
        assert running.service.accepted == 6
        held.go.set()
        replies = [future.result() for future in asked]
        assert sorted(status for status, _, _ in replies) == [200] * 6 + [429] * 24
        for status, headers, reply in replies:
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert json.loads(reply)["error"]["type"] == "rate_limit_error"
            else:
                assert reply.endswith(b"data: [DONE]\n\n") if stream else json.loads(reply)["choices"]
        wait_for(lambda: running.service.accepted == 0)
        assert running.send("POST", CHAT, body)[0] == 200


def test_the_openai_client_comes_back_and_is_answered(earth):
    """Its own retries honour Retry-After: with patience, an overloaded server answers everybody."""
    with serving(earth, max_queue=2, max_batch=2) as running, ThreadPoolExecutor(8) as pool:
        client = running.client().with_options(max_retries=20)
        ask = client.chat.completions.create
        asked = [pool.submit(ask, model="scaleearth", messages=[message(data_url(png(i)))]) for i in range(4)]
        texts = [future.result().choices[0].message.content for future in asked]
    assert texts == [earth.ask(png(i), "Forest?").text for i in range(4)]


def test_who_leaves_before_the_turn_is_not_computed_for(held):
    with serving(held, max_batch=1) as running, ThreadPoolExecutor(1) as pool:
        body = json.dumps(chat()).encode()
        first = pool.submit(running.send, "POST", CHAT, body)
        wait_for(lambda: running.service.accepted == 1 and held.busy)
        with socket.create_connection(("127.0.0.1", running.port)) as link:
            link.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: running.service.batcher._jobs.qsize() == 1)
        wait_for(lambda: running.service.accepted == 1)  # while the engine stands still
        held.go.set()
        assert first.result()[0] == 200 and running.send("POST", CHAT, body)[0] == 200
        # A pass is counted after its replies.
        wait_for(lambda: "scaleearth_batch_jobs_count 2.0" in running.send("GET", "/metrics")[2].decode())
        assert "scaleearth_questions_total 2.0" in running.send("GET", "/metrics")[2].decode()


def test_a_stopping_server_answers_the_accepted_and_refuses_the_rest(held):
    with serving(held) as running, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(running.post, chat()) for _ in range(3)]
        wait_for(lambda: running.service.accepted == 3)
        running.service.stop()
        status, headers, reply = running.post(chat())
        assert status == 503 and "stopping" in reply["error"]["message"] and "retry-after" in headers
        assert running.send("GET", "/health")[0] == 503
        running.server.should_exit = True
        held.go.set()
        assert [future.result()[0] for future in asked] == [200, 200, 200]


def test_bodies_too_large_are_refused_however_they_come(earth):
    with serving(earth, max_image_bytes=20_000) as running:
        big = json.dumps(chat(url="data:image/png;base64," + "A" * 5_000_000)).encode()
        status, _, reply = running.send("POST", CHAT, big)
        assert status == 413 and b"bytes" in reply
        pieces = (big[i : i + 65536] for i in range(0, len(big), 65536))
        status, _, _ = running.send("POST", CHAT, pieces)  # chunked: no length is announced
        assert status == 413
        assert running.post(chat())[0] == 200


def test_a_slow_body_does_not_keep_its_place(earth):
    with serving(earth, max_queue=1, body_seconds=0.4) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as link:
            link.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n".encode() + b'{"model"')
            assert link.recv(4096).startswith(b"HTTP/1.1 408")
        wait_for(lambda: running.service.accepted == 0)
        assert running.post(chat())[0] == 200
