import math

import pytest

from scaleearth_pl.core.errors import ConfigError, GsdError, ScaleEarthError
from scaleearth_pl.core.gsd import (
    Provenance,
    Tier,
    TierBoundaries,
    check_gsd_m,
    effective_gsd_m,
    log10_gsd,
    parse_gsd_text,
    rank_tier_sizes,
)


@pytest.mark.parametrize(
    ("text", "metres"),
    [(".1524m", 0.1524), ("10m", 10.0), ("30 cm", 0.3), ("1e-1 M", 0.1), (0.5, 0.5), ("0.01km", 10.0)],
)
def test_lengths_with_units_become_metres(text, metres):
    assert parse_gsd_text(text) == pytest.approx(metres)


@pytest.mark.parametrize(
    "bad", [0, -1, 0.0, 10**400, math.nan, math.inf, -math.inf, "0m", "ten", "3 ft", "", None, True, [1]]
)
def test_every_impossible_gsd_is_refused_by_name(bad):
    with pytest.raises(GsdError, match="gsd_m_native"):
        parse_gsd_text(bad, field="gsd_m_native", file="x.json")


def test_tiers_are_half_open_and_null_is_unknown():
    tiers = TierBoundaries()
    assert [tiers.tier_of(g) for g in (0.05, 0.999, 1.0, 9.99, 10.0, 60)] == [
        Tier.HIGH,
        Tier.HIGH,
        Tier.MID,
        Tier.MID,
        Tier.LOW,
        Tier.LOW,
    ]
    assert tiers.tier_of(None) is Tier.UNKNOWN
    with pytest.raises(ConfigError):
        TierBoundaries(high_below_m=10, mid_below_m=1)


def test_resizing_changes_gsd_by_the_area_ratio():
    assert effective_gsd_m(0.15, (512, 512), (256, 256)) == pytest.approx(0.30)
    assert effective_gsd_m(10, (100, 400), (200, 800)) == pytest.approx(5)
    assert log10_gsd(0.1) == pytest.approx(-1)
    with pytest.raises(GsdError):
        effective_gsd_m(0, (1, 1), (1, 1))


def test_provenance_decides_trust():
    assert [p.nll_weight for p in Provenance] == [1.0, 0.5, 0.0, 0.0]
    assert [p.default_sigma_log10 for p in Provenance] == [0.01, 0.05, None, None]


def test_rank_tiers_share_the_rank_remainder_to_the_finest():
    assert rank_tier_sizes(64) == (22, 21, 21)
    assert rank_tier_sizes(3) == (1, 1, 1)
    assert all(sum(rank_tier_sizes(r)) == r for r in range(3, 70))
    with pytest.raises(ConfigError, match="rank"):
        rank_tier_sizes(2)


def test_errors_name_value_and_remedy_and_survive_a_worker():
    error = check_raises()
    assert "value -3" in str(error)
    assert "Remedy:" in str(error)
    assert str(type(error)(str(error))) == str(error)


def check_raises() -> ScaleEarthError:
    with pytest.raises(GsdError) as info:
        check_gsd_m(-3)
    return info.value
