"""Which coordinate reference systems can be measured on Earth, and how.

A map transform is not in metres: degrees are anisotropic, Mercator stretches by 1 / cos(latitude), some grids count US
survey feet, and a raster of Mars has metres that say nothing about Earth. All of these become one question, "at which
longitude and latitude does this map point lie, on which ellipsoid?", which PROJ answers for every projection it
knows. We ask it with the CRS's *own* geographic base, so no datum shift, no grid file and no network is involved.

Price: PROJ's inverse projections stop iterating at about 1e-10 rad (0.6 mm), so `ground.py` never measures less than
ten metres of ground.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import ProjError

from scaleearth_pl.core.errors import GsdError

EARTH_SEMI_MAJOR_M = (6_350_000.0, 6_400_000.0)
"""Every Earth ellipsoid and sphere in use lies within; Venus (6 051 800 m) and Mars (3 396 190 m) do not."""

_FULL_TURN_AND_HALF = 540.0


@dataclass(frozen=True, kw_only=True)
class EarthCrs:
    """A horizontal CRS on an Earth ellipsoid.

    `degrees_per_unit` converts the angular unit of the geographic base (degree, grad) and `meridian_deg` is its prime
    meridian east of Greenwich.
    """

    name: str
    geod: Geod
    to_base: Transformer | None
    degrees_per_unit: float
    meridian_deg: float

    def lonlat(self, x: float, y: float) -> tuple[float, float]:
        """Longitude (of the CRS's own prime meridian) and latitude in degrees; raises `GsdError` off the map.

        Args:
            x: easting or longitude in units of the CRS.
            y: northing or latitude in units of the CRS.
        """
        if self.to_base is not None:
            x, y = self.to_base.transform(x, y)
        lon, lat = x * self.degrees_per_unit, y * self.degrees_per_unit
        if not (math.isfinite(lon) and math.isfinite(lat)):
            raise GsdError(f"the place lies outside the domain of {self.name}", field="transform", value=(x, y))
        if abs(lat) > 90 or abs(lon) > _FULL_TURN_AND_HALF:
            raise GsdError(
                "the coordinates are no longitude and latitude",
                field="transform",
                value=(round(lon, 6), round(lat, 6)),
                remedy=f"the file claims {self.name}; its coordinates are of another system",
            )
        return lon, lat

    def line(self, a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        """Geodesic from `a` to `b`, both (lon, lat) of `lonlat`: metres, and azimuth in degrees halfway.

        The mean of both ends' azimuths is that of the middle to second order, whatever the meridians' convergence.
        """
        start, back, metres = self.geod.inv(a[0], a[1], b[0], b[1])
        turn = (back + 180.0 - start + 180.0) % 360.0 - 180.0
        return float(metres), float(start + turn / 2)


@lru_cache(maxsize=256)
def earth_crs(text: str) -> EarthCrs:
    """Reads WKT, PROJ text or an authority code such as "EPSG:32631".

    Cached, because a corpus of tiles repeats a few systems and PROJ takes milliseconds to build one.

    Raises:
        GsdError: not understood, not horizontal (local, vertical, geocentric), or not on Earth.
    """
    try:
        crs = _horizontal(CRS.from_user_input(text))
        _require_earth(crs)
        base, transformer = _geographic_base(crs)
        ellipsoid = crs.ellipsoid
        degrees = math.degrees(base.axis_info[0].unit_conversion_factor)
        meridian = base.prime_meridian
        return EarthCrs(
            name=crs.name,
            geod=Geod(a=ellipsoid.semi_major_metre, b=ellipsoid.semi_minor_metre),
            to_base=transformer,
            degrees_per_unit=degrees,
            meridian_deg=math.degrees(meridian.longitude * meridian.unit_conversion_factor) if meridian else 0.0,
        )
    except ProjError as error:
        raise GsdError(f"CRS is not understood: {_first_line(error)}", field="crs", value=text[:80]) from error


def is_other_planet(text: str) -> bool:
    """True if the CRS is readable and stands on a body that is not Earth."""
    try:
        ellipsoid = _horizontal(CRS.from_user_input(text)).ellipsoid
    except ProjError:
        return False
    return ellipsoid is not None and not _is_earth(ellipsoid.semi_major_metre)


def _horizontal(crs: CRS) -> CRS:
    """Without vertical part and without a bound datum shift."""
    while crs.is_bound or crs.is_compound:
        crs = crs.source_crs if crs.is_bound else crs.sub_crs_list[0]
    return crs


def _is_earth(semi_major_m: float) -> bool:
    low, high = EARTH_SEMI_MAJOR_M
    return low < semi_major_m < high


def _require_earth(crs: CRS) -> None:
    if not (crs.is_projected or crs.is_geographic) or crs.ellipsoid is None:
        raise GsdError("CRS is not a map of the Earth's surface", field="crs", value=f"{crs.type_name} {crs.name!r}")
    if not _is_earth(crs.ellipsoid.semi_major_metre):
        raise GsdError(
            "CRS is of another planet",
            field="crs",
            value=f"{crs.name}, radius {crs.ellipsoid.semi_major_metre:.0f} m",
        )


def _geographic_base(crs: CRS) -> tuple[CRS, Transformer | None]:
    """The geographic CRS under a projected or rotated-pole one; no transformer where the CRS is that base itself."""
    if not (crs.is_projected or crs.is_derived):
        return crs, None
    base = crs.geodetic_crs if crs.is_projected else crs.source_crs
    if base is None:
        raise GsdError("CRS has no geographic base", field="crs", value=crs.name)
    return base, Transformer.from_crs(crs, base, always_xy=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
