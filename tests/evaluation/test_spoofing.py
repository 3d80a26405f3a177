"""Spoofing curves of answers that are known: staircase, flat; on disk; drawn."""

import numpy as np
import pytest
from fakes.subjects import tiny_subject
from fakes.tables import view_table
from PIL import Image

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.figures import VARIANT_STYLES, styles_of
from scaleearth_pl.evaluation.bootstrap import place_means
from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.table import ViewTable, tabulate
from scaleearth_pl.evaluation.evaluator.views import SPOOF_GRID_M, View, shift_views, spoof_views
from scaleearth_pl.evaluation.falsify.measure import SHIFTS_DECADES
from scaleearth_pl.evaluation.protocols.spoofing import smoothness, spoofing_curve
from scaleearth_pl.evaluation.protocols.spoofing_figure import save_spoofing_figure
from scaleearth_pl.model.gate import GateConfig

ORACLE = View(policy="metadata")


def curve(chance, shifts=SHIFTS_DECADES, name="ours"):
    views = [ORACLE, *shift_views(shifts)]
    return spoofing_curve(view_table(views, lambda v: chance(v.shift_decades), subject=name), relative=True)


def test_flat_has_no_jump():
    flat = curve(lambda x: 0.6)
    assert smoothness(flat)["largest_jump"] == 0 and smoothness(flat)["largest_jump_ci95"] == [0, 0]


def test_a_staircase_jumps_and_a_slope_does_not():
    stairs, slope = smoothness(curve(lambda x: 0.8 if x < 0.5 else 0.5)), smoothness(curve(lambda x: 0.7 - 0.075 * x))
    assert stairs["largest_jump"] == pytest.approx(0.3, abs=0.01) and stairs["between"] == [0.25, 0.5]
    assert stairs["share_of_contrast"] == pytest.approx(1)
    assert slope["largest_jump"] < 0.03 and slope["total_variation"] == pytest.approx(0.3, abs=0.01)


def test_absolute_grid_knows_its_truth():
    views = [ORACLE, *spoof_views(SPOOF_GRID_M)]
    table = view_table(views, lambda v: 0.5 if v.spoof_gsd_m is None else 0.9 - 0.2 * abs(np.log10(v.spoof_gsd_m)))
    absolute = spoofing_curve(table, relative=False)
    best = absolute.log10_K[absolute.mean_K.argmax()]
    assert absolute.truth == 0 and best == pytest.approx(0) and len(absolute.log10_K) == 8
    with pytest.raises(ConfigError, match="no such grid"):
        spoofing_curve(table, relative=True)
    family = spoofing_curve(table, relative=False, keep_N=table.mask(family="scale_specific"))
    assert family.n_questions == 300


def test_bands_cover_what_places_vary():
    made = curve(lambda x: 0.8)
    assert (made.low_K < made.mean_K).all() and (made.high_K > made.mean_K).all()
    mean_V, resampled = place_means(np.ones((2, 30), bool), np.repeat(["a", "b", "c"], 10))
    assert mean_V.tolist() == [1, 1] and (resampled == 1).all()


def test_tables_survive_the_disk(tmp_path):
    table = view_table([ORACLE, *shift_views([-1, 1])], lambda v: 0.6)
    table.save(tmp_path / "a" / "t.npz")
    back = ViewTable.load(tmp_path / "a" / "t.npz")
    back.same_questions(table)
    assert back.views == table.views and (back.correct_VN == table.correct_VN).all() and back.subject == "fake"
    assert table.mask(cue=True).sum() == 450 and table.row("metadata-shift+1") == 2
    with pytest.raises(ConfigError, match="no such view"):
        table.row("fused")


def test_from_a_model_and_plain_lora_is_exactly_flat(fake_corpus):
    corpus = CorpusSplit.open(fake_corpus, "test", limit_images=2)
    ours, plain = tiny_subject(fake_corpus), tiny_subject(fake_corpus, gate=GateConfig(kind="open"))
    views = [ORACLE, *spoof_views([0.1, 1.0, 10.0]), *shift_views([-1.0, 1.0])]
    tables = [tabulate(s, corpus.images(s), views) for s in (ours, plain)]
    tables[0].same_questions(tables[1])
    assert tables[0].correct_VN.shape[0] == 6 and len(tables[0].readings) == 2
    assert len({tuple(row) for row in tables[0].nll_VN.round(6).tolist()}) == 6
    assert len({tuple(row) for row in tables[1].nll_VN.tolist()}) == 1
    assert spoofing_curve(tables[0], relative=True).log10_K.tolist() == [-1, 0, 1]


def test_figure(tmp_path):
    curves = {"ours": curve(lambda x: 0.9 - 0.2 * abs(x)), "plain": curve(lambda x: 0.6)}
    save_spoofing_figure(tmp_path / "f.png", curves, floor=0.4, edges=(0.5,))
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 400
    save_spoofing_figure(tmp_path / "g.png", curves, floor=0.4, edges=(0.5,), untold={"B2": 0.5})
    row_of = {name: np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("f.png", "g.png")}
    colour = styles_of([*curves, "B2"])["B2"].colour  # a level line in a colour of its own
    third = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    longest = {name: int((pixels == third).all(-1).sum(1).max()) for name, pixels in row_of.items()}
    assert longest["f.png"] == 0 and longest["g.png"] > 150


def test_a_variant_has_one_colour_in_every_figure_and_others_take_what_is_left():
    some = styles_of(["bucketed", "a", "ours", "b"])
    assert (some["ours"], some["bucketed"]) == (VARIANT_STYLES["ours"], VARIANT_STYLES["bucketed"])
    assert len({style.colour for style in some.values()}) == len(some)
    assert len(styles_of([f"model {i}" for i in range(20)])) == 20
