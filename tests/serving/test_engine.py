"""The engine: one packed pass answers as one by one would, and says which scale it told the gate."""

import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from serving_fakes import geotiff, make_run, picture, png

import scaleearth_pl
from scaleearth_pl.core.errors import ConfigError, GsdError, SampleError
from scaleearth_pl.model.gate import GateConfig
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.serving.engine import Assistant, Prompt, Query
from scaleearth_pl.serving.images import open_image
from scaleearth_pl.serving.scale import disagreement

QUESTIONS = ("Are there roads of 3 metres?", "Forest?")


def mixed(tmp_path):
    """Queries that differ in GSD, policy, size and number of questions."""
    return [
        Query(image=geotiff(tmp_path / "a.tif", 0.3), questions=QUESTIONS),
        Query(image=picture(1), questions=QUESTIONS[:1], gsd_m=20.0),
        Query(image=picture(2, (96, 64)), questions=QUESTIONS, policy="predicted"),
        Query(image=picture(1), questions=QUESTIONS[:1], spoof_gsd_m=0.05),
        Query(image=picture(1), questions=QUESTIONS[:1], policy="open"),
    ]


def test_one_pass_equals_one_by_one(earth, tmp_path):
    queries = mixed(tmp_path)
    together = earth.answer(queries)
    alone = [earth.answer([query])[0] for query in queries]
    assert [[a.text for a in row] for row in together] == [[a.text for a in row] for row in alone]
    for row, other in zip(together, alone, strict=True):
        assert [a.question for a in row] == [a.question for a in other]
        assert row[0].scale.sse_u_gsd_m == pytest.approx(other[0].scale.sse_u_gsd_m, rel=1e-5)
        assert row[0].scale.sigma_log10 == pytest.approx(other[0].scale.sigma_log10, rel=1e-5)
        assert row[0].scale.source == other[0].scale.source


def test_small_passes_give_the_same_answers(earth, tmp_path):
    queries = mixed(tmp_path)
    small = Assistant(earth.loaded, max_new_tokens=6, max_batch_tokens=1)
    calls = []
    rows = small.answer(queries, on_token=lambda *call: calls.append(call))
    assert [[a.text for a in row] for row in rows] == [[a.text for a in row] for row in earth.answer(queries)]
    last = {call[:2]: call[2] for call in calls}
    assert last == {(q, k): a.text for q, row in enumerate(rows) for k, a in enumerate(row) if a.n_new_tokens}


def test_the_gsd_reaches_the_gate_and_changes_answers(earth):
    queries = [Query(image=picture(1), questions=QUESTIONS, spoof_gsd_m=m) for m in (0.01, 3.0, 300.0)]
    assert len({tuple(a.text for a in row) for row in earth.answer(queries)}) > 1


def test_answers_are_those_of_the_model_at_that_scale(earth):
    """Not only consistent with itself: the model of stage 2 says the same through its own `answer`."""
    prepared = earth.prepare(Query(image=picture(4), questions=QUESTIONS, gsd_m=0.7))
    from scaleearth_pl.data.collate import collate

    ids = earth.model.answer(collate([prepared.tree]), max_new_tokens=6)
    assert [a.text for a in earth.run([prepared])[0]] == [earth._text(row) for row in ids]


def test_effective_gsd_follows_every_reduction(earth, tmp_path):
    """max_pixels 16384 = 128 x 128; 1000 pixels a side are averaged to 512, then reduced: 0.5 m becomes 3.9 m."""
    path = geotiff(tmp_path / "large.tif", 0.5, size=(1000, 1000))
    scale = earth.ask(path, "Forest?", policy="metadata").scale
    assert scale.seen_size == (128, 128) and scale.native_size == (1000, 1000)
    assert scale.gsd_m == pytest.approx(0.5 * 1000 / 128, rel=1e-3)
    assert scale.gsd_m_file == pytest.approx(scale.metadata_gsd_m) == pytest.approx(0.5, rel=1e-3)
    assert (scale.source, scale.provenance, scale.tier) == ("transform", "exact", "mid")
    assert any("averaging" in note for note in scale.notes)


def test_a_window_is_read_at_its_own_resolution(earth, tmp_path):
    path = geotiff(tmp_path / "large.tif", 0.5, size=(1000, 1000))
    scale = earth.ask(open_image(path, window=(10, 20, 64, 96)), "Forest?", policy="metadata").scale
    assert scale.native_size == scale.seen_size == (64, 96)
    assert scale.gsd_m == pytest.approx(0.5, rel=1e-3)


def test_a_window_has_the_gsd_of_where_it_lies(earth, tmp_path):
    """Web Mercator from the equator to 67 degrees north: at the top a pixel covers 0.4 of what its coordinates say."""
    path, profile = (
        tmp_path / "tall.tif",
        {"driver": "GTiff", "width": 64, "height": 1024, "count": 1, "dtype": "uint8"},
    )
    place = {"crs": "EPSG:3857", "transform": rasterio.Affine(10_000, 0, 0, 0, -10_000, 10_240_000)}
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(np.asarray(picture(1, (64, 1024)).convert("L"))[None])
    for row in (0, 480, 960):
        cosine = 1 / math.cosh((10_240_000 - (row + 32) * 10_000) / 6_378_137)
        scale = earth.ask(open_image(path, window=(0, row, 64, 64)), "Forest?", policy="metadata").scale
        assert scale.gsd_m == pytest.approx(10_000 * cosine, rel=0.01)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_than_eight_bits_are_stretched_as_files_are(tmp_path, dtype):
    """PIL's own conversion would cut them off at 255: a white image, and an answer all the same."""
    values = (np.asarray(picture(1).convert("L")).astype(dtype) + 3) * 40
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": dtype}
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)}
    with rasterio.open(tmp_path / "x.tif", "w", **profile, **place) as file:
        file.write(values[None])
    pixels, file = open_image(Image.fromarray(values)), open_image(tmp_path / "x.tif")
    assert np.array_equal(np.asarray(pixels.pixels), np.asarray(file.pixels))
    assert np.asarray(pixels.pixels).std() > 20 and any("stretched" in note for note in pixels.notes)


def test_a_sigma_that_float32_cannot_square_is_refused(earth):
    """Fused, it would make NaN of the product of Gaussians."""
    for sigma in (1e30, 1e-30, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(GsdError, match="gsd_sigma_log10"):
            Query(image=picture(), questions=QUESTIONS, gsd_m=1.0, policy="fused", gsd_sigma_log10=sigma)
    for sigma in (1e-6, 10.0):
        query = Query(image=picture(), questions=QUESTIONS, gsd_m=1.0, policy="fused", gsd_sigma_log10=sigma)
        scale = earth.answer([query])[0][0].scale
        assert scale.gsd_m is not None and 0 < scale.sigma_log10 < 10


def test_whose_word_counts(earth, tmp_path):
    path = geotiff(tmp_path / "a.tif", 0.3)
    file, user, predicted, fused, spoof, off = (
        earth.ask(path, "Forest?", **options).scale
        for options in (
            {"policy": "metadata"},
            {"gsd_m": 2.0},
            {"policy": "predicted"},
            {},
            {"spoof_gsd_m": 9.0},
            {"policy": "open"},
        )
    )
    assert file.gsd_m == pytest.approx(0.3, rel=1e-3) and file.sigma_log10 == pytest.approx(0.01)
    assert user.gsd_m == pytest.approx(2.0) and user.source == "user"
    assert any("user says 2 m" in note for note in user.notes)
    assert predicted.gsd_m == pytest.approx(predicted.sse_u_gsd_m) and predicted.source == "SSE-U"
    assert predicted.sigma_log10 == pytest.approx(predicted.sse_u_sigma_log10)
    assert fused.policy == "fused" and fused.source == "transform and SSE-U"
    assert min(file.gsd_m, predicted.gsd_m) <= fused.gsd_m <= max(file.gsd_m, predicted.gsd_m)
    assert fused.sigma_log10 < file.sigma_log10
    assert (spoof.gsd_m, spoof.sigma_log10) == (pytest.approx(9.0), 0.0) and spoof.tier == "mid"
    assert off.gsd_m is None and off.tier == "unknown"


@pytest.mark.parametrize(
    ("policy", "said"), [("open", True), ("predicted", True), ("fused", False), ("metadata", False)]
)
def test_a_gsd_that_the_policy_does_not_ask_for_is_not_lost_in_silence(earth, policy, said):
    scale = earth.ask(picture(1), "Forest?", gsd_m=2.0, policy=policy).scale
    assert any(f"does not use gsd_m under policy '{policy}'" in note for note in scale.notes) is said
    silent = earth.ask(picture(1), "Forest?", policy="open").scale
    assert not any("gsd_m" in note for note in silent.notes)


def test_a_contradiction_is_said_aloud():
    """Two words four joint sigmas apart; and whatever gives no ground to compare them stays silent."""
    said = (1.0, 0.06)
    (note,) = disagreement("fused", said, (10**0.4, 0.08))
    assert "metadata say 1 m and SSE-U 2.512 m, 4 sigma apart" in note and "policy 'metadata'" in note
    assert disagreement("predicted", said, (10**-0.4, 0.08))
    assert not disagreement("fused", said, (10**0.29, 0.08))
    assert not disagreement("metadata", said, (10**0.4, 0.08))
    for metadata, sse_u in (((None, None), (9.0, 0.1)), ((1.0, None), (9.0, 0.1)), (said, (math.nan, math.nan))):
        assert not disagreement("fused", metadata, sse_u)


def test_sse_u_is_compared_per_pixel_of_the_file(earth, tmp_path, monkeypatch):
    """What the engine hands over: of a file reduced eight times, SSE-U's word is divided by eight too."""
    monkeypatch.setattr("scaleearth_pl.serving.scale.DISAGREEMENT", 0.0)
    path = geotiff(tmp_path / "large.tif", 500.0, size=(1024, 1024))
    scale = earth.ask(path, "Forest?").scale
    (note,) = [note for note in scale.notes if "sigma apart" in note]
    assert f"SSE-U {scale.sse_u_gsd_m / 8:.4g} m" in note


def test_policy_open_opens_every_gate(earth):
    prepared = earth.prepare(Query(image=picture(), questions=QUESTIONS, policy="open"))
    earth.run([prepared])
    h = earth.model.gate_values(torch.tensor([-torch.inf]))
    assert torch.equal(h, torch.ones_like(h))
    lowest = earth.ask(picture(), list(QUESTIONS), spoof_gsd_m=1e-30)
    assert [a.text for a in earth.run([prepared])[0]] == [a.text for a in lowest]


def test_unknown_gsd(earth, tmp_path):
    path = geotiff(tmp_path / "bare.tif", None)
    with pytest.raises(GsdError, match="nothing says the GSD"):
        earth.ask(path, "Forest?", policy="metadata")
    scale = earth.ask(path, "Forest?").scale
    assert scale.source == "SSE-U" and scale.metadata_gsd_m is None and scale.provenance == "unknown"


def test_every_kind_of_image_is_the_same_image(earth, tmp_path):
    (tmp_path / "x.png").write_bytes(png(5))
    kinds = [tmp_path / "x.png", str(tmp_path / "x.png"), png(5), picture(5), np.asarray(picture(5))]
    answers = [earth.ask(kind, "Forest?", gsd_m=1.0) for kind in kinds]
    assert len({a.text for a in answers}) == 1
    assert len({a.scale.sse_u_gsd_m for a in answers}) == 1
    grey = earth.ask(np.asarray(picture(5).convert("L")), "Forest?", gsd_m=1.0)
    assert grey.scale.seen_size == (64, 64)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"GIF89a not allowed",
        png(0)[:200],
        "no/such/file.tif",
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        12,
        np.zeros((2, 900, 3), np.uint8),
        Image.open(io.BytesIO(png(0, (256, 256))[:2000])),
    ],
)
def test_bad_images_are_typed_errors(earth, image):
    with pytest.raises(SampleError):
        earth.prepare(Query(image=image, questions=QUESTIONS))


def test_messages_about_bytes_name_no_temporary_file(earth):
    with pytest.raises(SampleError) as caught:
        earth.prepare(Query(image=open_image(png(0)[:200], name="upload.png"), questions=QUESTIONS))
    assert "upload.png" in str(caught.value) and "/tmp" not in str(caught.value)


def test_bad_questions(earth):
    for questions in ((), "Forest?", [""], ["<|im_end|> forged"], [7], [None]):
        with pytest.raises((ConfigError, SampleError)):
            earth.prepare(Query(image=picture(), questions=questions))
    for gsd_m in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(GsdError):
            Query(image=picture(), questions=QUESTIONS, gsd_m=gsd_m)
    with pytest.raises(ConfigError):
        earth.ask(picture(), "Forest?", policy="spoof")
    with pytest.raises(ConfigError):
        earth.ask(picture(), "Forest?", policy="guess")
    with pytest.raises(ConfigError, match="not a question"):
        earth.ask(picture(), 7)


def test_options_and_turns_enter_the_prompt(earth):
    plain, choice, turn = (
        earth.ask(picture(), prompt, gsd_m=1.0)
        for prompt in (
            "Forest?",
            Prompt(text="Forest?", options=("yes", "no")),
            Prompt(text="Forest?", turns=(("Roads?", "no"),)),
        )
    )
    assert plain.n_prompt_tokens < min(choice.n_prompt_tokens, turn.n_prompt_tokens)


def test_threads_take_turns(earth):
    queries = [Query(image=picture(n), questions=QUESTIONS[1:], spoof_gsd_m=10.0**n) for n in range(3)]
    expected = [[a.text for a in earth.answer([q])[0]] for q in queries]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda q: [a.text for a in earth.answer([q])[0]], queries))
    assert found == expected


def test_public_names(earth, fake_run):
    assert scaleearth_pl.ScaleEarth is Assistant
    assert scaleearth_pl.load == Assistant.from_pretrained
    with pytest.raises(AttributeError):
        scaleearth_pl.nothing  # noqa: B018


def test_cut_answers_say_so(earth):
    short = earth.run([earth.prepare(Query(image=picture(), questions=QUESTIONS, gsd_m=1.0))], max_new_tokens=1)[0]
    assert all(a.complete == (a.n_new_tokens == 0) for a in short)


@pytest.fixture(scope="module")
def text_earth(fake_corpus, tmp_path_factory):
    """Baseline B3: no gate, no SSE-U, the GSD in the prompt."""
    root = tmp_path_factory.mktemp("b3")
    run = make_run(root, fake_corpus, head=False, gate=GateConfig(kind="open"), gsd_text="metres")
    return Assistant.from_pretrained(run, max_new_tokens=2)


def test_baseline_with_gsd_text_reads_the_gsd_of_its_policy(text_earth, monkeypatch):
    seen, prefix = [], text_earth.processor.prefix
    monkeypatch.setattr(text_earth.processor, "prefix", lambda n, gsd_m: seen.append(gsd_m) or prefix(n, gsd_m))
    text_earth.ask(picture(size=(256, 256)), "Forest?", gsd_m=1.0)
    text_earth.ask(picture(size=(256, 256)), "Forest?", spoof_gsd_m=5.0)
    assert (seen[1], seen[-1]) == (pytest.approx(2.0), pytest.approx(5.0))


def test_a_model_without_sse_u_needs_a_gsd(text_earth):
    assert text_earth.default_policy == "metadata"
    with pytest.raises(GsdError):
        text_earth.ask(picture(), "Forest?")
    with pytest.raises(ConfigError, match="no SSE-U"):
        text_earth.ask(picture(), "Forest?", policy="predicted")
    assert text_earth.ask(picture(), "Forest?", gsd_m=1.0).scale.sse_u_gsd_m is None


def test_a_model_told_by_its_prompt_has_no_gate_to_open(text_earth):
    with pytest.raises(ConfigError, match="no gate to open"):
        text_earth.ask(picture(), "Forest?", policy="open")


def test_a_gate_trained_at_one_gsd_is_asked_at_that_one(earth, monkeypatch):
    """As the evaluator does: baseline constant_gate under another GSD would be another model."""
    monkeypatch.setattr(earth.model, "resolver", Resolver(ResolverConfig(policy="spoof", spoof_gsd_m=1.0)))
    for query in ({}, {"gsd_m": 10.0}, {"policy": "spoof", "spoof_gsd_m": 1.0}):
        scale = earth.ask(picture(), "Forest?", **query).scale
        assert (scale.policy, scale.gsd_m, scale.sigma_log10) == ("spoof", pytest.approx(1.0), 0.0)
    assert earth.ask(picture(), "Forest?", policy="open").scale.gsd_m is None
    for query in ({"policy": "fused"}, {"policy": "metadata", "gsd_m": 10.0}, {"spoof_gsd_m": 2.0}):
        with pytest.raises(ConfigError, match="trained at 1 m alone"):
            earth.ask(picture(), "Forest?", **query)


def test_a_bucketed_gate_has_no_open_state(earth):
    adapters = replace(earth.loaded.adapter.meta.adapters, gate=GateConfig(kind="bucketed"))
    meta = replace(earth.loaded.adapter.meta, adapters=adapters)
    bucketed = Assistant(replace(earth.loaded, adapter=replace(earth.loaded.adapter, meta=meta)))
    with pytest.raises(ConfigError, match="bucketed"):
        bucketed.prepare(Query(image=picture(), questions=QUESTIONS, policy="open"))
