"""The server over a real socket, through the ordinary openai client: what is asked is what the engine answers."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from server_fakes import CHAT, chat, data_url, message, serving, wait_for
from serving_fakes import geotiff, make_run, picture, png

from scaleearth_pl.serving import server, viewer
from scaleearth_pl.serving.engine import Query
from scaleearth_pl.serving.server_announce import AnnouncingServer

QUESTIONS = ["Are there roads of 3 metres?", "Forest?"]


@pytest.fixture(scope="module")
def running(earth):
    with serving(earth, max_image_pixels=200_000, max_image_bytes=300_000, max_queue=400) as running:
        yield running


def test_the_openai_client_gets_the_engines_answer(running, earth, tmp_path):
    file = geotiff(tmp_path / "a.tif", 0.3)
    url = data_url(file.read_bytes(), "image/tiff")
    reply = running.client().chat.completions.create(model="scaleearth", messages=[message(url)])
    alone = earth.ask(file, "Forest?")
    assert reply.choices[0].message.content == alone.text
    assert reply.choices[0].finish_reason == ("stop" if alone.complete else "length")
    assert reply.usage.total_tokens == alone.n_prompt_tokens + alone.n_new_tokens
    scale = reply.model_extra["scaleearth"]
    assert scale["metadata_gsd_m"] == pytest.approx(0.3, rel=1e-3)
    assert (scale["policy"], scale["provenance"]) == ("fused", "exact")
    assert scale["gsd_m"] == pytest.approx(alone.scale.gsd_m)


def test_the_body_says_the_gsd_and_whose_word_counts(running, earth):
    def scale(**extra):
        create = running.client().chat.completions.create
        return create(model="scaleearth", messages=[message(data_url(png()))], extra_body=extra).model_extra[
            "scaleearth"
        ]

    assert scale(gsd_m=2.0)["metadata_gsd_m"] == 2.0 and scale(gsd_m=2.0)["source"] == "user"
    assert scale(gsd_m=2.0, gsd_policy="predicted")["source"] == "SSE-U"
    assert scale(spoof_gsd_m=7.5)["gsd_m"] == pytest.approx(7.5)
    assert scale(gsd_policy="open")["gsd_m"] is None
    assert scale(gsd_m=2.0, gsd_policy="fused", gsd_sigma_log10=0.4)["metadata_sigma_log10"] == 0.4


def test_several_questions_share_one_request(running, earth):
    reply = running.post(chat(None, questions=QUESTIONS, gsd_m=0.5))[2]
    answers = earth.ask(png(), QUESTIONS, gsd_m=0.5)
    assert [c["message"]["content"] for c in reply["choices"]] == [a.text for a in answers]
    assert [c["index"] for c in reply["choices"]] == [0, 1]


def test_earlier_turns_are_a_conversation(running):
    first = message(data_url(png()), "Forest?")
    turns = [first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "And water?"}]
    status, _, reply = running.post({"model": "scaleearth", "messages": turns})
    plain = running.post(chat("And water?"))[2]
    assert status == 200 and reply["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_a_streamed_answer_is_the_whole_answer_in_pieces(running):
    arguments = {"model": "scaleearth", "messages": [message(data_url(png(3)))], "extra_body": {"gsd_m": 0.4}}
    whole = running.client().chat.completions.create(**arguments)
    events = list(
        running.client().chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    )
    pieces = [e.choices[0].delta.content or "" for e in events if e.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 1  # it did come in pieces
    assert events[-1].usage.total_tokens == whole.usage.total_tokens
    ends = [e for e in events if e.choices and e.choices[0].finish_reason]
    assert ends[0].model_extra["scaleearth"] == whole.model_extra["scaleearth"]


def test_a_streamed_request_with_several_questions_fills_every_choice(running, earth):
    row = chat(None, questions=QUESTIONS, stream=True, gsd_m=0.4)
    _, headers, body = running.send("POST", CHAT, json.dumps(row).encode())
    assert headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    texts = ["", ""]
    for line in map(json.loads, lines[:-1]):
        for choice in line["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [a.text for a in earth.ask(png(), QUESTIONS, gsd_m=0.4)]


def test_max_tokens_cuts_as_a_short_run_would_even_beside_longer_neighbours(running, earth):
    def ask(limit):
        return running.post(chat(gsd_m=0.4, max_tokens=limit))[2]["choices"][0]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, (1, 2, 6, 1, 2, 6)))
    prepared = earth.prepare(Query(image=png(), questions=["Forest?"], gsd_m=0.4))
    for limit, choice in zip((1, 2, 6) * 2, found, strict=True):
        alone = earth.run([prepared], max_new_tokens=limit)[0][0]
        assert choice["message"]["content"] == alone.text
        assert choice["finish_reason"] == ("stop" if alone.complete else "length")


def test_requests_of_different_gsds_share_a_pass_and_keep_their_answers(earth):
    gsds = [0.05, 0.3, 1.0, 4.0, 20.0, 300.0] * 2
    with serving(earth, max_wait_s=3.0, max_batch=12) as running, ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda m: running.post(chat(gsd_m=m))[2], gsds))
        text = running.send("GET", "/metrics")[2].decode()
    for gsd_m, reply in zip(gsds, replies, strict=True):
        assert reply["choices"][0]["message"]["content"] == earth.ask(png(), "Forest?", gsd_m=gsd_m).text
        assert reply["scaleearth"]["metadata_gsd_m"] == gsd_m
    passes = next(
        float(line.split()[1]) for line in text.splitlines() if line.startswith("scaleearth_batch_jobs_count")
    )
    assert passes <= 3  # twelve requests came within the wait


def test_models_health_and_metrics(running):
    models = running.client().models.list().data
    assert [m.id for m in models] == ["scaleearth"]
    assert running.client().models.retrieve("scaleearth").owned_by == "scaleearth"
    assert running.send("GET", "/health")[0] == 200
    running.post(chat())
    text = running.send("GET", "/metrics")[2].decode()
    assert 'scaleearth_requests_total{status="200"}' in text and "scaleearth_accepted 0.0" in text


def test_errors_are_those_of_the_openai_client(running):
    client = running.client()
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=[message(data_url(png()))])
    with pytest.raises(openai.UnprocessableEntityError, match="data URLs"):
        client.chat.completions.create(model="scaleearth", messages=[message("https://example.org/a.png")])
    create = client.chat.completions.create
    with pytest.raises(openai.UnprocessableEntityError, match="nothing says the GSD"):
        create(model="scaleearth", messages=[message(data_url(png()))], extra_body={"gsd_policy": "metadata"})


def test_messages_come_back_whole_and_null_asks_for_nothing(running):
    """The ordinary idiom for a second turn sends every field that the client knows of, most of them null."""
    create = running.client().chat.completions.create
    first = message(data_url(png()))
    reply = create(model="scaleearth", messages=[first]).choices[0].message
    for said in (reply, reply.model_dump(), reply.to_dict()):
        assert create(model="scaleearth", messages=[first, said, {"role": "user", "content": "Water?"}]).choices
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "response_format": {"type": "text"}}
    neutral |= {"tools": [], "store": False, "metadata": {}, "logit_bias": {}, "service_tier": "auto"}
    assert running.post(chat(stop=None, stream=None, functions=None, **neutral))[0] == 200
    for fields in ({"frequency_penalty": 0.5}, {"presence_penalty": -1}, {"logprobs": True}, {"stop": ["a"]}):
        assert running.post(chat(**fields))[0] == 422


def test_a_few_characters_cannot_become_millions_of_tokens(running):
    """Options are tokenised once for each question; the bound is of the product, and holds before anything is."""
    begin = time.process_time()
    status, _, reply = running.post(chat(None, questions=["Forest?"] * 128, options=["a"] * 100_000))
    assert status == 422 and "characters" in reply["error"]["message"] and time.process_time() - begin < 2
    assert running.post(chat(None, questions=["Forest?"] * 4, options=["yes", "no"]))[0] == 200


def test_faults_of_ours_are_counted_and_told_in_the_log(earth, monkeypatch, caplog):
    def broken(*_, **__):
        raise KeyError("broken")

    with serving(earth) as running:
        monkeypatch.setattr(running.service, "check", broken)
        status, _, reply = running.post(chat())
        assert status == 500 and reply["error"]["type"] == "server_error"
        monkeypatch.undo()
        monkeypatch.setattr(earth, "run", broken)
        assert running.post(chat())[0] == 500
        text = running.send("GET", "/metrics")[2].decode()
        assert 'scaleearth_requests_total{status="500"} 2.0' in text
    (record,) = [r for r in caplog.records if r.name == "scaleearth_pl.serving.queueing"]
    assert record.exc_info[0] is KeyError


def test_a_4_bit_model_is_served_written_out(fake_corpus, tmp_path, monkeypatch):
    run, served = make_run(tmp_path, fake_corpus, quantise="nf4"), []
    monkeypatch.setattr(server, "serve", lambda app, **_: served.append(app.state.service.assistant) or 0)
    assert server.main(["--model", str(run), "--precision", "dequantised", "--max-new-tokens", "5"]) == 0
    (assistant,) = served
    assert {type(layer.base).__name__ for layer in assistant.model.adapters.values()} == {"DequantisedLinear"}
    assert assistant.max_new_tokens == 5


@pytest.mark.parametrize("text", ["99999", "-1", "eighty", "8_0", "²"])
def test_what_is_no_port_is_told_before_a_model_is_loaded(text, capsys):
    for command in (server.main, viewer.main):
        with pytest.raises(SystemExit) as stop:
            command([f"--port={text}"])
        assert stop.value.code == 2
        assert "no port: give a number from 0 to 65535" in capsys.readouterr().err


def test_the_port_that_the_system_chose_is_told(earth, fake_corpus, monkeypatch, capsys):
    for module, words in ((server, []), (viewer, ["--corpus", str(fake_corpus)])):
        monkeypatch.setattr(module, "assistant_of", lambda args: earth)
        status: list[int] = []
        stops: list[AnnouncingServer] = []
        monkeypatch.setattr(AnnouncingServer, "startup", _noting(stops))
        thread = threading.Thread(target=lambda: status.append(module.main(["--port", "0", *words])))  # noqa: B023
        thread.start()
        wait_for(lambda: stops and stops[0].started)  # noqa: B023
        port = stops[0].servers[0].sockets[0].getsockname()[1]
        stops[0].should_exit = True
        thread.join(30)
        assert status == [0] and f"http://127.0.0.1:{port}/" in capsys.readouterr().err


def _noting(servers, real=AnnouncingServer.startup):
    """`startup` that keeps the server."""

    async def startup(self, sockets=None):
        await real(self, sockets)
        servers.append(self)

    return startup


def test_a_wrong_method_is_told_the_right_one(running):
    status, headers, _ = running.send("GET", CHAT)
    assert status == 405 and headers["allow"] == "POST"


def test_a_broken_pass_fails_alone(earth, monkeypatch):
    """One job that breaks the model: its neighbours in the same pass are answered."""
    run = earth.run

    def fragile(prepared, **kwargs):
        if any(p.questions[0].text == "poison" for p in prepared):
            raise RuntimeError("out of memory")
        return run(prepared, **kwargs)

    monkeypatch.setattr(earth, "run", fragile)
    with serving(earth, max_wait_s=3.0, max_batch=3) as running, ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda text: running.post(chat(text)), ("Forest?", "poison", "Water?")))
        assert running.service.accepted == 0
    assert [status for status, _, _ in replies] == [200, 500, 200]
    assert "RuntimeError" in replies[1][2]["error"]["message"]


def test_a_client_that_leaves_gives_its_place_back(earth):
    with serving(earth, max_wait_s=0.2) as running:
        body = json.dumps(chat(stream=True)).encode()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", running.port)) as link:
                link.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        with socket.create_connection(("127.0.0.1", running.port)) as link:
            link.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n".encode() + b"{")
        deadline = time.monotonic() + 10
        while running.service.accepted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running.service.accepted == 0
        assert running.post(chat())[0] == 200


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_ends_with_0(fake_run, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", "--model", str(fake_run), "--port", str(port), "--max-wait-ms", "2500", "--max-new-tokens", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scaleearth_pl", *words], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    try:
        _wait_until_listening(client, process)
        with ThreadPoolExecutor(4) as pool:
            create = client.chat.completions.create
            url = data_url(png())
            asked = [pool.submit(create, model="scaleearth", messages=[message(url)]) for _ in range(4)]
            _wait_until_accepted(port, 4)
            assert not any(future.done() for future in asked)  # the batch is still open
            process.send_signal(signal.SIGTERM)
            assert all(future.result().choices[0].message for future in asked)
        assert process.wait(30) == 0, process.stderr.read()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    finally:
        process.kill()
        process.communicate()


def _wait_until_listening(client, process):
    deadline = time.monotonic() + 90
    while True:
        try:
            client.models.list()
            return
        except openai.APIConnectionError:
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)


def _wait_until_accepted(port, number):
    while json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10))["accepted"] < number:
        time.sleep(0.02)


def test_a_picture_of_any_allowed_kind(running):
    for kind in ("JPEG", "TIFF", "PNG"):
        stream = io.BytesIO()
        picture(1).save(stream, format=kind)
        status, _, reply = running.post(chat(url=data_url(stream.getvalue(), f"image/{kind.lower()}")))
        assert status == 200 and reply["scaleearth"]["native_size"] == [64, 64]
