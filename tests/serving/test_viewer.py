"""The viewer in a real browser: it loads, the slider moves, and answers and gates follow."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from fastapi.responses import HTMLResponse
from PIL import Image
from server_fakes import data_url, listening
from serving_fakes import geotiff, make_run, picture, png

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.serving.engine import Assistant
from scaleearth_pl.serving.server_limits import ServerLimits
from scaleearth_pl.serving.viewer import PAGE, create_viewer
from scaleearth_pl.serving.viewer_corpus import CorpusImages
from scaleearth_pl.serving.viewer_look import Look, gates, look

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
ASKED = [{"question": "Are there roads of 3 metres?"}, {"question": "Forest?"}]

# A page of the same origin that holds the viewer in a frame, moves its slider as a hand would, and writes down what it saw.
DRIVER = """<!doctype html><iframe id="v" src="/?image=1" style="width:1300px;height:1000px"></iframe>
<pre id="seen"></pre><script>
const seen = [], frame = document.getElementById("v"), wait = ms => new Promise(done => setTimeout(done, ms));
const text = (doc, what) => [...doc.querySelectorAll(what)].map(node => node.textContent);
async function ready(doc) { while (doc.body.dataset.state !== "ready" && doc.body.dataset.state !== "fault") await wait(20); }
function note(doc, label) {
  const heat = doc.getElementById("heat"), pixels = heat.getContext("2d").getImageData(0, 0, heat.width, heat.height).data;
  seen.push({ label, told: doc.getElementById("told").textContent, gated: text(doc, "td.gated"), open: text(doc, "td.open"),
    gates: text(doc, "text.now"), heat: pixels.reduce((a, b) => a + b, 0) / pixels.length,
    cursor: doc.getElementById("cursor").getAttribute("x1"),
    sse: doc.getElementById("sse")?.getAttribute("points").length ?? 0, fault: doc.getElementById("fault").textContent });
}
frame.onload = async () => {
  const doc = frame.contentDocument;
  await ready(doc); note(doc, "metadata");
  for (const s of ["-1.5", "0.5", "2.8"]) {
    const slider = doc.getElementById("gsd");
    slider.value = s; slider.dispatchEvent(new Event("input"));
    doc.body.dataset.state = "moved";
    await ready(doc); note(doc, s);
  }
  doc.querySelector("[data-mode=sse_u]").click();
  await wait(50); await ready(doc); note(doc, "sse_u");
  const thumb = doc.querySelectorAll("#thumbs button")[2];
  frame.contentWindow.focus(); thumb.focus();
  const reached = doc.activeElement === thumb;
  thumb.click(); await wait(50); await ready(doc); note(doc, "thumb");
  const attribute = (id, name) => doc.getElementById(id).getAttribute(name);
  Object.assign(seen.at(-1), { reached, picture: attribute("picture", "src"), slider: attribute("gsd", "aria-valuetext") });
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


@pytest.fixture(scope="module")
def viewer(earth, fake_corpus):
    app = create_viewer(earth, CorpusImages(fake_corpus, count=4, max_read_pixels=earth.max_read_pixels))
    app.get("/driver")(lambda: HTMLResponse(DRIVER))
    app.state.service = type("Nothing", (), {"stop": lambda self: None, "limits": ServerLimits()})()
    with listening(app) as running:
        yield running


def ask(viewer, **body):
    status, _, reply = viewer.send(
        "POST", "/api/look", json.dumps({"questions": ASKED} | body).encode(), {"Content-Type": "application/json"}
    )
    return status, json.loads(reply)


def test_a_look_gives_the_engines_answers_with_gate_on_and_off(viewer, earth, fake_corpus):
    images = CorpusImages(fake_corpus, count=4, max_read_pixels=earth.max_read_pixels)
    questions = [q["question"] for q in ASKED]
    status, found = ask(viewer, image=1, mode="spoof", gsd_m=0.02)
    assert status == 200
    assert found["gated"] == [a.text for a in earth.ask(images.open(1), questions, spoof_gsd_m=0.02)]
    assert found["open"] == [a.text for a in earth.ask(images.open(1), questions, policy="open")]
    assert found["scale"]["sse_u_gsd_m"] > 0
    metadata = ask(viewer, image=1, mode="metadata")[1]
    assert metadata["scale"]["metadata_gsd_m"] == pytest.approx(images.rows[1]["gsd_m"])
    assert metadata["metadata_seen_gsd_m"] == pytest.approx(metadata["scale"]["gsd_m"])
    assert ask(viewer, image=1, mode="sse_u")[1]["scale"]["source"] == "SSE-U"


def test_an_image_of_the_visitors_own_brings_its_gsd(viewer, tmp_path):
    url = data_url(geotiff(tmp_path / "a.tif", 0.3).read_bytes(), "application/octet-stream")
    found = ask(viewer, url=url, mode="metadata")[1]
    assert found["metadata_seen_gsd_m"] == pytest.approx(0.3, rel=1e-3)
    shown = Image.open(io.BytesIO(base64.b64decode(found["preview"].removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(shown), np.asarray(picture()))  # browsers do not draw GeoTIFFs: the server does
    assert ask(viewer, image=0, mode="metadata")[1]["preview"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"image": 99, "mode": "sse_u"},
        {"image": -1, "mode": "sse_u"},
        {"mode": "sse_u"},
        {"image": 0, "mode": "spoof"},
        {"image": 0, "mode": "spoof", "gsd_m": -1},
        {"image": 0, "mode": "spoof", "gsd_m": 1e30},
        {"image": 0, "mode": "what"},
        {"url": "/etc/passwd", "mode": "sse_u"},
        {"url": data_url(png()), "mode": "metadata"},
        {"image": 0, "mode": "sse_u", "questions": []},
    ],
)
def test_what_cannot_be_looked_at_is_refused(viewer, body):
    assert ask(viewer, **body)[0] == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'{"mode": "spoof", "image": 0, "gsd_m": NaN, "questions": [{"question": "Forest?"}]}',
        b'{"mode": "spoof", "image": 0, "gsd_m": Infinity, "questions": [{"question": "Forest?"}]}',
        b'{"mode": "sse_u", "image": 0, "questions": [{"question": "\\ud800"}]}',
        b'{"mode": "sse_u", "image": NaN, "questions": [{"question": "Forest?"}]}',
        b'{"mode": "sse_u", "image": 0, "questions": [{"question": "Forest?"}], "x": "' + b"a" * 10**6 + b'"}',
        b'{"mode": "sse_u", "image": 0, "questions": [{"question": "Forest?", "option": ["a"]}]}',
    ],
    ids=["empty", "text", "nan", "infinity", "surrogate", "nan image", "unknown field", "misspelt"],
)
def test_bodies_that_nobody_can_mean_are_refused_as_json(viewer, body):
    status, _, reply = viewer.send("POST", "/api/look", body, {"Content-Type": "application/json"})
    assert status in (400, 422) and 7 < len(json.loads(reply)["error"]["message"]) < 4000


def test_a_look_is_bounded_as_a_request_of_the_server_is(viewer, earth, monkeypatch):
    def refused(*questions):
        status, reply = ask(viewer, image=0, mode="sse_u", questions=list(questions))
        return status, reply["error"]["message"]

    assert refused(*33 * ASKED[:1])[0] == 422
    assert refused({"question": "x" * 4001}) == (422, "a text of more than 4000 characters")
    assert refused({"question": "Forest?", "options": ["yes", "y" * 4001]})[0] == 422
    assert refused({"question": "Forest?", "options": ["a"] * 600_000})[1].startswith("more than 512000 characters")
    assert "empty" in refused({"question": "  "})[1]
    monkeypatch.setattr(earth, "max_batch_tokens", 30)
    assert refused(*ASKED)[0] == 413
    monkeypatch.undo()
    large = b'{"x": "' + b"a" * (ServerLimits().max_body_bytes + 1) + b'"}'
    status, _, reply = viewer.send("POST", "/api/look", large, {"Content-Type": "application/json"})
    assert status == 413 and "bytes" in json.loads(reply)["error"]["message"]


@pytest.mark.parametrize("mode", ["metadata", "sse_u", "spoof"])
def test_a_gate_that_knows_one_gsd_answers_at_that_one(viewer, earth, monkeypatch, mode):
    """Baseline constant_gate: whatever the page's buttons and slider say, as `ask` without a policy does."""
    monkeypatch.setattr(earth.model, "resolver", Resolver(ResolverConfig(policy="spoof", spoof_gsd_m=2.0)))
    status, found = ask(viewer, url=data_url(png()), mode=mode, gsd_m=0.1)
    assert status == 200 and found["scale"]["gsd_m"] == pytest.approx(2.0) and len(found["open"]) == len(ASKED)
    assert found["gated"] == [a.text for a in earth.ask(png(), [q["question"] for q in ASKED])]


def test_images_are_spread_over_the_split_to_its_end(fake_corpus):
    index = ShardIndex.load(fake_corpus)
    names = [index.text["image_id"][row] for row in index.rows(("train",)).tolist()]
    shown = [row["id"] for row in CorpusImages(fake_corpus, split="train", count=7, max_read_pixels=1000).rows]
    assert len(names) == 12 and len(set(shown)) == 7 and (shown[0], shown[-1]) == (names[0], names[-1])


def test_a_look_takes_as_many_questions_as_the_page_is_told(viewer, earth):
    most = gates(earth)["max_questions"]
    assert [ask(viewer, image=0, mode="sse_u", questions=n * ASKED[:1])[0] for n in (most, most + 1)] == [200, 422]


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_page_sends_the_newest_of_many_questions():
    """The visitor's own pile up; with eight of the image's there is room for 24."""
    function = re.search(r"function questions\(\) \{.*?\n\}", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(0)
    state = {"url": None, "image": 0, "images": [{"questions": [{"question": f"theirs {k}"} for k in range(8)]}]}
    state |= {"model": {"max_questions": 32}, "own": [f"mine {k}" for k in range(40)]}
    program = f"const state = {json.dumps(state)}; {function} console.log(JSON.stringify(questions()))"
    done = subprocess.run([NODE, "-e", program], capture_output=True, text=True, timeout=60, check=True)
    asked = [q["question"] for q in json.loads(done.stdout)]
    assert asked == [f"theirs {k}" for k in range(8)] + [f"mine {k}" for k in range(16, 40)]


def test_a_bucketed_gate_is_looked_at_without_an_open_side(fake_corpus, tmp_path):
    """It has no thresholds to draw and no open state: the page shows its answers alone."""
    bucketed = Assistant.from_pretrained(make_run(tmp_path, fake_corpus, gate=GateConfig(kind="bucketed")))
    images = CorpusImages(fake_corpus, count=4, max_read_pixels=bucketed.max_read_pixels)
    found = look(bucketed, images, Look(image=1, mode="spoof", gsd_m=0.5, questions=ASKED), ServerLimits())
    assert len(found["gated"]) == len(ASKED) and found["open"] is None
    assert gates(bucketed)["thresholds"] == []


def test_no_images_are_no_page(fake_corpus):
    with pytest.raises(ConfigError, match="images"):
        CorpusImages(fake_corpus, count=0, max_read_pixels=1000)


def test_the_gates_are_those_of_the_model(earth):
    found = gates(earth)
    assert len(found["modules"]) == len(earth.model.adapters) == len(found["thresholds"])
    assert [stop - start for start, stop in found["tiers"].values()] == [4, 4, 4]
    first = next(iter(earth.model.adapters.values())).gate
    assert found["thresholds"][0] == pytest.approx(first.thresholds.tolist(), abs=1e-4)


def test_the_page_asks_nothing_of_the_internet(viewer):
    page = viewer.send("GET", "/")[2].decode()
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", page) and "import(" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_in_a_browser_answers_and_gates_follow_the_slider(viewer, tmp_path):
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run(
        [*words, f"http://127.0.0.1:{viewer.port}/driver"], capture_output=True, text=True, timeout=170
    )
    text = html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL).group(1))
    assert text, done.stderr[-2000:]
    metadata, fine, middle, coarse, sse_u, thumb = rows = json.loads(text)
    assert not any(row["fault"] for row in rows)
    assert thumb["reached"] and thumb["picture"] == "/api/image/2"  # the keyboard gets to the images
    assert thumb["slider"] == thumb["told"]
    assert fine["told"].startswith("3.2 cm") and coarse["told"].startswith("631 m")
    assert float(fine["cursor"]) < float(middle["cursor"]) < float(coarse["cursor"])
    assert fine["heat"] < middle["heat"] < coarse["heat"]  # dark is open: fine images open more ranks
    for tier in range(3):
        assert float(fine["gates"][tier]) >= float(middle["gates"][tier]) >= float(coarse["gates"][tier])
    assert len({tuple(row["gated"]) for row in (fine, middle, coarse)}) > 1  # the answers follow
    assert fine["open"] == middle["open"] == coarse["open"] == metadata["open"]  # the gate-off side does not
    assert sse_u["sse"] and "×/÷" in sse_u["told"]
