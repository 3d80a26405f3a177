import math

import pytest

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Candidate, Stage, resolve
from scaleearth_pl.geo.ground import GroundPixel


def candidate(gsd_m: float, stage: Stage, provenance: Provenance = Provenance.NOMINAL, source: str = "") -> Candidate:
    return Candidate(gsd_m=gsd_m, stage=stage, provenance=provenance, source=source or stage.name.lower())


def test_nearest_stage_wins_whatever_the_order() -> None:
    all_stages = [candidate(float(i + 1), stage) for i, stage in enumerate(Stage)]
    for order in (all_stages, all_stages[::-1]):
        result = resolve(order)
        assert result.chosen is not None
        assert result.chosen.stage is Stage.TRANSFORM
        assert len(result.candidates) == len(all_stages)
        assert len(result.disagreements) == len(all_stages) - 1


def test_within_a_stage_the_surer_wins() -> None:
    sure = candidate(0.5, Stage.RECORD, Provenance.EXACT, "dota")
    assert resolve([candidate(0.6, Stage.RECORD), sure]).chosen == sure


def test_agreement_is_five_percent() -> None:
    near, far = candidate(1.04, Stage.RECORD), candidate(1.06, Stage.SENSOR)
    result = resolve([candidate(1.0, Stage.TRANSFORM, Provenance.EXACT), near, far])
    assert [c.source for c in result.disagreeing] == ["sensor"]
    assert "1.06" in result.disagreements[0]


def test_imprecise_interval_disagrees_only_outside_itself() -> None:
    interval = Candidate.interval(0.3, 2.0, stage=Stage.SENSOR, source="sensor:naip")
    assert not resolve([candidate(1.0, Stage.FILE_NAME), interval]).disagreeing
    assert resolve([candidate(5.0, Stage.FILE_NAME), interval]).disagreeing


def test_interval_sigma_is_half_width_over_root_three() -> None:
    interval = Candidate.interval(1.0, 100.0, stage=Stage.DATASET, source="d")
    assert interval.gsd_m == pytest.approx(10.0)
    assert interval.sigma_log10 == pytest.approx(1 / math.sqrt(3))
    assert interval.provenance is Provenance.IMPRECISE


@pytest.mark.parametrize(("provenance", "sigma"), [(Provenance.EXACT, 0.01), (Provenance.NOMINAL, 0.05)])
def test_sigma_by_provenance(provenance: Provenance, sigma: float) -> None:
    assert candidate(1.0, Stage.RECORD, provenance).sigma_log10 == sigma


@pytest.mark.parametrize("provenance", [Provenance.UNKNOWN, Provenance.IMPRECISE])
def test_candidate_without_sigma_is_refused(provenance: Provenance) -> None:
    with pytest.raises(GsdError, match="sigma"):
        candidate(1.0, Stage.RECORD, provenance)


@pytest.mark.parametrize("gsd_m", [0.0, -1.0, math.nan, math.inf])
def test_impossible_gsd_is_refused(gsd_m: float) -> None:
    with pytest.raises(GsdError):
        candidate(gsd_m, Stage.RECORD)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
def test_interval_must_rise(low: float, high: float) -> None:
    with pytest.raises(GsdError):
        Candidate.interval(low, high, stage=Stage.SENSOR, source="s")


def test_nothing_known_is_unknown_and_a_veto_overrules_everything() -> None:
    empty, vetoed = resolve([]), resolve([candidate(1.0, Stage.RECORD)], veto="Mars")
    for result in (empty, vetoed):
        assert (result.gsd_m, result.sigma_log10, result.provenance) == (None, None, Provenance.UNKNOWN)
    assert len(vetoed.candidates) == 1
    assert "Mars" in vetoed.all_notes


def test_resize_moves_every_candidate_and_keeps_their_agreement() -> None:
    exact = Candidate(
        gsd_m=2.0, gsd_x_m=1.0, gsd_y_m=4.0, stage=Stage.TRANSFORM, provenance=Provenance.EXACT, source="t"
    )
    before = resolve([exact, candidate(2.01, Stage.RECORD), candidate(9.0, Stage.SENSOR)])
    after = before.resized((400, 200), (100, 100))
    assert after.gsd_m == pytest.approx(2.0 * math.sqrt(4 * 2))
    assert after.chosen is not None
    assert (after.chosen.gsd_x_m, after.chosen.gsd_y_m) == (4.0, 8.0)
    assert after.sigma_log10 == before.sigma_log10
    assert [c.source for c in after.disagreeing] == [c.source for c in before.disagreeing] == ["sensor"]


def test_image_that_spans_scales_is_imprecise() -> None:
    def pixel(spread: float) -> GroundPixel:
        return GroundPixel(gsd_x_m=1, gsd_y_m=1, lon=0, lat=0, spread_log10=spread, sheared=False, off_map=spread > 0.2)

    def measured(spread: float) -> Candidate:
        return Candidate.measured(pixel(spread), stage=Stage.TRANSFORM, source="t")

    assert measured(0.001).provenance is Provenance.EXACT
    assert not measured(0.001).notes
    assert measured(0.05).provenance is Provenance.EXACT
    assert "varies" in measured(0.05).notes[0]
    assert measured(0.3).provenance is Provenance.IMPRECISE
    assert measured(0.3).sigma_log10 == pytest.approx(0.3 / math.sqrt(3))
    assert any("off the map" in note for note in measured(0.3).notes)


def test_as_dict_is_plain_json() -> None:
    row = candidate(1.0, Stage.FILE_NAME).as_dict()
    assert (row["stage"], row["provenance"], row["sigma_log10"]) == ("file_name", "nominal", 0.05)
