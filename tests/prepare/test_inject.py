import logging
from pathlib import Path

import pytest
from geo.geo_fakes import MARS, north_up, write_raster

from scaleearth_pl.core.errors import SampleError
from scaleearth_pl.core.gsd import Provenance, Tier, TierBoundaries
from scaleearth_pl.core.sample import Question, Sample
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.prepare.inject import LOGGED_EXAMPLES, Evidence, InjectReport, inject, sample_fields

NAIP = "m_4709963_se_14_1_20180716.tif"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "0001.tif", crs="EPSG:32631", transform=north_up(5))


def test_chain_order_metadata_name_sensor_dataset(image: Path) -> None:
    """Dropping the nearest source again and again walks down the chain."""
    record = {"res_x": "4m", "res_y": "4m"}
    full = Evidence(image_id="a", image=image, name=NAIP, record=record, sensor="Sentinel-2", dataset="MtSCCD")
    no_image = Evidence(image_id="a", name=NAIP, record=record, sensor="Sentinel-2", dataset="MtSCCD")
    no_record = Evidence(image_id="a", name=NAIP, sensor="Sentinel-2", dataset="EuroSAT")
    no_name = Evidence(image_id="a", sensor="Sentinel-2", dataset="MtSCCD")
    no_sensor = Evidence(image_id="a", dataset="MtSCCD")
    chosen = [inject(e).chosen for e in (full, no_image, no_record, no_name, no_sensor)]
    stages = [c.stage for c in chosen if c]
    assert stages == [Stage.TRANSFORM, Stage.RECORD, Stage.FILE_NAME, Stage.SENSOR, Stage.DATASET]
    assert [c.gsd_m for c in chosen if c] == [pytest.approx(5.002, rel=1e-3), 4.0, 1.0, 10.0, 1.0]


def test_every_candidate_is_kept_with_provenance_and_sigma(image: Path) -> None:
    result = inject(Evidence(image_id="a", image=image, name=NAIP, sensor="NAIP", dataset="MtSCCD"))
    assert [(c.source, c.provenance) for c in result.candidates] == [
        ("transform", Provenance.EXACT),
        ("name:naip", Provenance.NOMINAL),
        ("sensor:naip/rgb", Provenance.IMPRECISE),
        ("dataset:mtsccd/rgb", Provenance.NOMINAL),
    ]
    assert all(c.sigma_log10 > 0 for c in result.candidates)
    assert len(result.disagreements) == 3


def test_extra_candidate_takes_its_stage() -> None:
    mine = Candidate.interval(0.2, 0.4, stage=Stage.SENSOR, source="classes.csv:airplane")
    result = inject(Evidence(image_id="a", dataset="PatternNet", extra=(mine,)))
    assert result.chosen == mine


def test_nothing_known_is_unknown_with_reasons() -> None:
    result = inject(Evidence(image_id="a", name="16.png", sensor="Vostok", dataset="nowhere", record={"x": 1}))
    assert result.provenance is Provenance.UNKNOWN
    assert len(result.notes) == 2


def test_mars_is_not_rescued_by_a_table(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "m.tif", crs=MARS, transform=north_up(5, (0, 0)))
    result = inject(Evidence(image_id="a", image=path, sensor="WorldView-2", dataset="DIOR"))
    assert result.gsd_m is None
    assert len(result.candidates) == 2


def test_disagreements_are_logged_a_few_times_and_counted_always(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    report, many = InjectReport(), LOGGED_EXAMPLES + 4
    with caplog.at_level(logging.WARNING):
        for k in range(many):
            report.add(f"i{k}", inject(Evidence(image_id=f"i{k}", image=image, name=NAIP)))
    assert report.disagreements == {("name:naip", "transform"): many}
    assert len(caplog.records) == LOGGED_EXAMPLES
    assert "i0" in caplog.text
    assert report.as_dict()["provenance"] == {"exact": many}


def test_agreement_is_silent(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = InjectReport()
    report.add("a", inject(Evidence(image_id="a", image=image, record={"res_x": "5m"})))
    assert not report.disagreements
    assert not caplog.records


def test_an_unreadable_file_is_an_error_and_not_an_unknown_gsd(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"")
    with pytest.raises(SampleError, match="empty file"):
        inject(Evidence(image_id="bad", image=tmp_path / "bad.tif"))


@pytest.mark.parametrize("known", [True, False])
def test_fields_make_a_valid_sample(image: Path, known: bool) -> None:
    result = inject(Evidence(image_id="a", image=image) if known else Evidence(image_id="a"))
    fields = sample_fields(result, TierBoundaries())
    question = Question(id="q", type="presence", family="identification", question="Is there a road?", answer="yes")
    sample = Sample(source="s", split="train", image_id="a", width=16, height=12, qas=(question,), **fields)
    assert sample.tier is (Tier.MID if known else Tier.UNKNOWN)
    assert (sample.lat is not None) is known
    assert Sample.from_json(sample.to_json()) == sample


def test_gsd_follows_a_resize_before_it_is_filed(image: Path) -> None:
    result = inject(Evidence(image_id="a", image=image)).resized((16, 12), (4, 3))
    fields = sample_fields(result, TierBoundaries())
    assert fields["gsd_m_native"] == pytest.approx(20.008, rel=1e-3)
    assert fields["tier"] is Tier.LOW
