"""Small rasters written on the spot, one argument a trap."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "geotiff"

REAL_TRUTH_M: dict[str, float | None] = {
    "201404_13SED190110_201404_0x1500m_CL_1.tif": 0.15,
    "2018_SJER_3_252000_4107000_image_477.tif": 0.1,
    "2020.tif": 89.22,
    "5b90f92da0d7280005fab355_4310.tif": 0.0968,
    "OSBS_029.tif": 0.1,
    "cog.tif": 7.728,
    "cog_gcps.tif": None,
    "cog_hirise_mars.tif": None,
    "m_4709963_se_14_1_20180716.tif": 5.002,
    "pan1.tif": 0.5,
    "pix4d_alpha_nodata.tif": 0.3527,
    "rgb_unmasked.tif": 4.5,
    "sample_geotiff_733601_3724734.tif": 0.5,
    "sample_geotiff_733646_3724959.tif": 0.5,
    "sample_geotiff_custom_proj_-661905_2118645.tif": 30.0,
    "sample_geotiff_custom_proj_-665745_2126325.tif": 30.0,
    "sample_geotiff_custom_proj_-669585_2122485.tif": 30.0,
    "sample_geotiff_custom_proj_-673425_2130165.tif": 30.0,
    "test_tiled.tif": 0.25,
    "web.tif": 424.28,
}
"""Metres per pixel by the NOTICE of the real files; None: unknown."""

MARS = "+proj=eqc +R=3395582 +lat_ts=-10 +lon_0=180 +units=m"
UTM31_ORIGIN = (500_000.0, 5_500_000.0)


def north_up(step_x: float, origin: tuple[float, float] = UTM31_ORIGIN, step_y: float | None = None) -> rasterio.Affine:
    """A transform without rotation, pixels of `step` in units of the map."""
    return rasterio.Affine(step_x, 0.0, origin[0], 0.0, -(step_y or step_x), origin[1])


def write_raster(path: Path, values: np.ndarray | None = None, **profile: Any) -> Path:
    """Writes `values` (bands, height, width; 16 x 12 grey ramp by default); profile goes to rasterio."""
    values = np.arange(16 * 12, dtype=np.uint8).reshape(1, 12, 16) if values is None else values
    extras = {key: profile.pop(key) for key in ("colorinterp", "descriptions", "tags", "colormap") if key in profile}
    count, height, width = values.shape
    profile = {"driver": "GTiff", "dtype": values.dtype, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", width=width, height=height, count=count, **profile) as dataset:
            dataset.write(values)
            if "colorinterp" in extras:
                dataset.colorinterp = extras["colorinterp"]
            if "descriptions" in extras:
                dataset.descriptions = extras["descriptions"]
            if "colormap" in extras:
                dataset.write_colormap(1, extras["colormap"])
            dataset.update_tags(**extras.get("tags", {}))
    return path


def write_json(path: Path, record: object) -> Path:
    path.write_text(json.dumps(record))
    return path
