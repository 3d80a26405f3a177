"""Web-map tiles: zoom and latitude to metres per pixel.

A tile server draws the Mercator square of 2 pi R on a side in 2^z tiles of 256 pixels, so a pixel is

    156 543.03 m / 2^z  of map,  times about cos(latitude) of ground.

The map pixel is handed to `measure_pixel` in EPSG:3857, so that a tile and a GeoTIFF of the same place agree to the
last digit (the cosine alone is up to 0.7 % off, because the ellipsoid is not the sphere of the tiles).

Price: beyond a place's native zoom servers upsample, and the tile then says 5.7 cm where the camera saw 12 cm. No
metadata betrays that, so a tile's GSD is nominal, never exact.
"""

import math

from scaleearth_pl.core.errors import GsdError
from scaleearth_pl.core.gsd import Provenance
from scaleearth_pl.geo.candidates import Candidate, Stage
from scaleearth_pl.geo.crs import earth_crs
from scaleearth_pl.geo.ground import GroundPixel, measure_pixel

SPHERE_RADIUS_M = 6_378_137.0
MAX_LATITUDE_DEG = 85.0511287798066
MAX_ZOOM = 24
_TILE_PIXELS = 256


def map_pixel_m(zoom: float, tile_pixels: int = _TILE_PIXELS) -> float:
    """Projected metres per pixel at `zoom`; 512-pixel tiles (@2x) have pixels half as long."""
    return 2 * math.pi * SPHERE_RADIUS_M / (tile_pixels * math.exp2(zoom))


def webmap_pixel(zoom: float, lat_deg: float, tile_pixels: int = _TILE_PIXELS) -> GroundPixel:
    """One pixel of a web map at a latitude, measured on the ellipsoid.

    Raises:
        GsdError: zoom outside 0..24, latitude beyond the map's edge (85.05 degrees), or a tile without pixels.
    """
    if not 0 <= zoom <= MAX_ZOOM or not abs(lat_deg) <= MAX_LATITUDE_DEG or tile_pixels < 1:
        raise GsdError(
            f"no web-map pixel: zoom is 0 to {MAX_ZOOM}, latitude within {MAX_LATITUDE_DEG:.2f} degrees",
            field="zoom, latitude, tile size",
            value=(zoom, lat_deg, tile_pixels),
        )
    step = map_pixel_m(zoom, tile_pixels)
    northing = SPHERE_RADIUS_M * math.log(math.tan(math.pi / 4 + math.radians(lat_deg) / 2))
    transform = (step, 0.0, -step / 2, 0.0, -step, northing + step / 2)
    return measure_pixel(transform, (1, 1), earth_crs("EPSG:3857"))


def webmap_candidate(
    zoom: float, lat_deg: float, tile_pixels: int = _TILE_PIXELS, *, stage: Stage = Stage.RECORD
) -> Candidate:
    """The nominal GSD of a web-map image; raises `GsdError` as `webmap_pixel` does."""
    pixel = webmap_pixel(zoom, lat_deg, tile_pixels)
    return Candidate(
        gsd_m=pixel.gsd_m,
        provenance=Provenance.NOMINAL,
        stage=stage,
        source="webmap:zoom",
        gsd_x_m=pixel.gsd_x_m,
        gsd_y_m=pixel.gsd_y_m,
        notes=(f"zoom {zoom:g} at latitude {lat_deg:.4g}; upsampling beyond the native zoom cannot be seen",),
    )
