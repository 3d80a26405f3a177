import math

import pytest

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Stage
from scaleearth_pl.geo.sensors import Table, TableRow, datasets, sensors


def row(name: str, product: str = "rgb", *aliases: str) -> TableRow:
    return TableRow(name=name, product=product, low_m=1, high_m=1, aliases=aliases, source="s", checked=True)


def test_the_shipped_table_names_its_sources() -> None:
    names = {r.name for r in sensors().rows}
    assert len(names) >= 25
    assert all(len(r.source) > 10 for r in sensors().rows)
    assert sum(r.checked for r in sensors().rows) > len(sensors().rows) / 2


@pytest.mark.parametrize(
    ("name", "product", "gsd_m"),
    [
        ("Sentinel-2", "rgb", 10),
        ("S2", "20m", 20),
        ("landsat 8", "pan", 15),
        ("WORLDVIEW02", "rgb", 1.84),
        ("WorldView-3", "pansharpened", 0.31),
        ("QUICKBIRD02", "multispectral", 2.44),
        ("ULTRACAM_EAGLE_FALCON", "rgb", 0.1524),
    ],
)
def test_lookup_by_name_alias_and_product(name: str, product: str, gsd_m: float) -> None:
    found = sensors().candidate(name, product)
    assert found is not None
    assert found.gsd_m == gsd_m
    assert (found.stage, found.provenance) == (Stage.SENSOR, Provenance.NOMINAL)


def test_pan_sharpened_takes_the_pan_gsd_and_plain_rgb_the_multispectral() -> None:
    for name in ("WorldView-2", "Pleiades", "GEOEYE01", "Gaofen-2"):
        pan, sharp, rgb = (sensors().candidate(name, p) for p in ("pan", "pan-sharpened", "rgb"))
        assert pan is not None
        assert rgb is not None
        assert pan == sharp
        assert rgb.gsd_m == pytest.approx(4 * pan.gsd_m, rel=0.05)


def test_sensors_that_vary_are_imprecise() -> None:
    naip = sensors().candidate("NAIP")
    assert naip is not None
    assert naip.provenance is Provenance.IMPRECISE
    assert naip.sigma_log10 == pytest.approx(math.log10(2 / 0.3) / 2 / math.sqrt(3))


def test_patternnet_is_its_published_interval() -> None:
    found = datasets().candidate("PatternNet")
    assert found is not None
    assert found.gsd_m == pytest.approx(0.54, rel=0.01)
    assert (found.provenance, found.stage) == (Provenance.IMPRECISE, Stage.DATASET)


def test_unknown_sensor_or_product_is_none() -> None:
    assert sensors().candidate("Vostok") is None
    assert sensors().candidate("WorldView-1", "rgb") is None


def test_a_product_named_twice_is_refused() -> None:
    Table([row("A"), row("A", "pan")], Stage.SENSOR)
    with pytest.raises(ConfigError, match="twice"):
        Table([row("A"), row("B", "rgb", "a")], Stage.SENSOR)


def test_a_users_row_that_is_not_there_is_named_with_what_is() -> None:
    sensors().refuse_unknown(None, field="sensor")
    sensors().refuse_unknown("quickbird 2", "multispectral", field="sensor")
    with pytest.raises(ConfigError, match=r"no such sensor.*Sentinel-22.*there is.*Sentinel-2"):
        sensors().refuse_unknown("Sentinel-22", field="sensor")
    with pytest.raises(ConfigError, match=r"S2, product 5m.*there is product 20m, 60m, rgb"):
        sensors().refuse_unknown("S2", "5m", field="sensor")
    with pytest.raises(ConfigError, match=r"no such dataset.*'mine'.*there is.*PatternNet"):
        datasets().refuse_unknown("mine", field="dataset")
