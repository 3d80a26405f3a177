"""One pixel measured on the ground.

The GSD of a georeferenced raster is the side of the square that covers as much of the ellipsoid as one pixel does, at the
image centre:

    P(u, v) = lonlat(T (u, v))                      T: affine map from pixels to map coordinates
    gsd_x   = |P(uc - n/2, vc) P(uc + n/2, vc)| / n    geodesic, in metres; gsd_y likewise
    gsd     = sqrt(gsd_x gsd_y |sin angle|)         angle between the two edges, by their azimuths at the centre

Measuring instead of converting units treats rotation, degrees, feet and every projection alike; there is no table of
special cases to forget one in. The angle is a right one on most maps; on an equal-area map far from its meridian it is
not, and edges alone would make a pixel of MODIS's sinusoidal grid (463 m) at 140 E, 60 N one of 705 m. n > 1 only where
a pixel is smaller than ten metres, see `crs.py`.

Price: the ellipsoid is not the terrain. A place h metres above it is larger by h / 6 371 000 (0.03 % at 2 km), and
slopes are ignored: far below the sigma of an exact GSD (2.3 %).
"""

import math
from dataclasses import dataclass

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import check_gsd_m
from scaleearth_pl.geo.crs import EarthCrs

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f) with x = a col + b row + c and y = d col + e row + f, as rasterio and world files order it."""

ANISOTROPY_RATIO = 1.1
"""Longer over shorter pixel edge from which a raster is flagged."""

_MIN_SPAN_M = 10.0
_SHEAR = 0.02


@dataclass(frozen=True, kw_only=True)
class GroundPixel:
    """Pixel edges in metres at the image centre, and the sine of the angle between them on the ground.

    `spread_log10` is the largest |log10(GSD at a corner / GSD at the centre)|: how wrong one number is for this image.
    """

    gsd_x_m: float
    gsd_y_m: float
    lon: float
    lat: float
    spread_log10: float
    sheared: bool
    off_map: bool
    sine: float = 1.0

    @property
    def gsd_m(self) -> float:
        """Root of the area of one pixel, in metres: the geometric mean of the edges where these are at right angles."""
        return _side_m(self.gsd_x_m, self.gsd_y_m, self.sine)


def is_anisotropic(gsd_x_m: float, gsd_y_m: float) -> bool:
    """True if the pixel edges differ by more than ten percent."""
    return max(gsd_x_m, gsd_y_m) > ANISOTROPY_RATIO * min(gsd_x_m, gsd_y_m)


def measure_pixel(transform: Transform, size: tuple[int, int], crs: EarthCrs) -> GroundPixel:
    """Measures the central pixel, and the corners for the spread.

    Args:
        transform: pixels to map coordinates.
        size: width and height in pixels.
        crs: of the map coordinates.

    Raises:
        GsdError: the transform is degenerate, on the map or on the ground, or the image centre does not lie on the map.
    """
    a, b, _, d, e, _ = transform
    if not all(map(math.isfinite, transform)) or a * e - b * d == 0:
        raise GsdError("transform is degenerate", field="transform", value=transform)
    width, height = size
    col, row = width / 2, height / 2
    gsd_x_m, gsd_y_m, angle = _edges(transform, col, row, crs)
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    lon, lat = _place(transform, col, row, crs)
    spread, off_map = _spread(transform, size, crs, check_gsd_m(_side_m(gsd_x_m, gsd_y_m, sine), field="transform"))
    return GroundPixel(
        gsd_x_m=gsd_x_m,
        gsd_y_m=gsd_y_m,
        lon=(lon + crs.meridian_deg + 180) % 360 - 180,
        lat=lat,
        spread_log10=spread,
        sheared=cosine > _SHEAR,
        off_map=off_map,
        sine=sine,
    )


def scaled(transform: Transform, factor_x: float, factor_y: float) -> Transform:
    """The same ground under pixels that are `factor` times as long along columns and rows."""
    a, b, c, d, e, f = transform
    return a * factor_x, b * factor_y, c, d * factor_x, e * factor_y, f


def moved(transform: Transform, col: float, row: float) -> Transform:
    """The same map under pixels that are counted from (col, row)."""
    a, b, c, d, e, f = transform
    return a, b, a * col + b * row + c, d, e, d * col + e * row + f


def _side_m(gsd_x_m: float, gsd_y_m: float, sine: float) -> float:
    return math.sqrt(gsd_x_m * gsd_y_m * sine)


def _edges(transform: Transform, col: float, row: float, crs: EarthCrs) -> tuple[float, float, float]:
    """Metres of the two edges through (col, row), and the angle between them in radians."""
    x_m, x_deg = _edge(transform, col, row, 1.0, 0.0, crs)
    y_m, y_deg = _edge(transform, col, row, 0.0, 1.0, crs)
    return x_m, y_m, math.radians(x_deg - y_deg)


def _edge(
    transform: Transform, col: float, row: float, d_col: float, d_row: float, crs: EarthCrs
) -> tuple[float, float]:
    """Metres and azimuth of one pixel step through (col, row), measured over at least `_MIN_SPAN_M` of ground."""
    rough_m, azimuth = _step(transform, col, row, d_col, d_row, crs)
    if rough_m >= _MIN_SPAN_M:
        return check_gsd_m(rough_m, field="transform"), azimuth
    pixels = _MIN_SPAN_M / max(rough_m, 1e-3)
    metres, azimuth = _step(transform, col, row, d_col * pixels, d_row * pixels, crs)
    return check_gsd_m(metres / pixels, field="transform"), azimuth


def _step(
    transform: Transform, col: float, row: float, d_col: float, d_row: float, crs: EarthCrs
) -> tuple[float, float]:
    start = _place(transform, col - d_col / 2, row - d_row / 2, crs)
    return crs.line(start, _place(transform, col + d_col / 2, row + d_row / 2, crs))


def _place(transform: Transform, col: float, row: float, crs: EarthCrs) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return crs.lonlat(a * col + b * row + c, d * col + e * row + f)


def _spread(transform: Transform, size: tuple[int, int], crs: EarthCrs, centre_m: float) -> tuple[float, bool]:
    """Largest deviation of the corner pixels in decades, and whether some corner lies off the map."""
    width, height = size
    deviations, off_map = [0.0], False
    for col in (0.5, width - 0.5):
        for row in (0.5, height - 0.5):
            try:
                x_m, y_m, angle = _edges(transform, col, row, crs)
                side_m = check_gsd_m(_side_m(x_m, y_m, abs(math.sin(angle))), field="transform")
            except GsdError:
                off_map = True
                continue
            deviations.append(abs(math.log10(side_m / centre_m)))
    return max(deviations), off_map
