"""Miniatures of the public archives, in the exact layouts of their publishers; equal seeds give equal bytes.

Each `make_*` writes one data set below `root` and returns the folder. Rows are padded, ids are strange and tables are
in the order that real files have; faults are the tests' business, with `edit_json` and the like.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

PATTERNNET_CLASSES = ("airplane", "christmas_tree_farm", "wastewater_treatment_plan")
DOTA_OBJECTS = {"P0000": ("0.26617", ["plane", "plane", "small-vehicle"]), "P0001": ("null", ["ship"])}
"""Parent id to its gsd line and its objects."""


def picture(seed: int, width: int, height: int, kind: str = "PNG") -> bytes:
    """An encoded RGB image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(stream, format=kind)
    return stream.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    """Writes a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    """Rewrites a JSON file after `change` worked on its content."""
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def make_xben(
    root: Path, *, n_images: int = 4, per_image: int = 3, split: str = "train", first: int = 2, stated: bool = True
) -> Path:
    """RSVQAxBEN, streamed to disk so that it can be large; ids start behind padding, images are 120 x 120 TIFFs."""
    folder = root / "rsvqa_xben"
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    tiles = [picture(k, 120, 120, "TIFF") for k in range(8)]
    ids = range(first, first + n_images)
    for i in ids:
        (folder / "Images" / f"{i}.tif").write_bytes(tiles[i % len(tiles)])
    resolution = {"res_x": "10m", "res_y": "10m"} if stated else {}
    images = ({"id": i, "original_name": f"S2A_MSIL2A_{i}", "sensor": "S2", **resolution, "active": True} for i in ids)
    numbers = [(i, i * per_image + k) for i in ids for k in range(per_image)]
    questions = (
        {
            "id": q, "date_added": 0.0, "img_id": i, "people_id": 0, "type": "LC" if q % 5 == 0 else "presence",
            "question": f"Are there  forests or area {q % 97} of water in the image?", "answers_ids": [q], "active": True,
        }
        for i, q in numbers
    )  # fmt: skip
    answers = (
        {"id": q, "question_id": q, "people_id": 0, "answer": ("yes", "no")[q % 2], "active": True} for _, q in numbers
    )
    padding = {"images": first, "questions": first * per_image, "answers": first * per_image}
    for kind, rows in (("images", images), ("questions", questions), ("answers", answers)):
        _stream_table(folder / f"RSVQAxBEN_split_{split}_{kind}.json", kind, padding[kind], rows)
    return folder


def _stream_table(path: Path, kind: str, n_padding: int, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w") as stream:
        stream.write(f'{{"{kind}": [')
        padded = ({"id": n, "active": False} for n in range(n_padding))
        for number, row in enumerate((*padded,)):
            stream.write((", " if number else "") + json.dumps(row))
        for number, row in enumerate(rows):
            stream.write((", " if number or n_padding else "") + json.dumps(row))
        stream.write("]}")


def make_patternnet(root: Path, *, per_class: int = 2) -> Path:
    """`PatternNet/images/<class>/<class>NNN.jpg`, one class in its misspelt form."""
    folder = root / "patternnet"
    for number, name in enumerate(PATTERNNET_CLASSES):
        for k in range(1, per_class + 1):
            short = name.replace("_", "")
            data = picture(10 * number + k, 64, 64, "JPEG")
            put(folder / "PatternNet" / "images" / name / f"{short}{k:03d}.jpg", data)
    return folder


def make_mtsccd(root: Path) -> Path:
    """`MtSCCD_LUSC/<split>/<city>/<class>/*.png` and a table of change pairs."""
    folder = root / "mtsccd"
    seed = 100
    for split, city in (("train", "Hangzhou"), ("train", "Wuhan"), ("val", "Nanjing"), ("test", "Hefei")):
        for label in ("residential", "woodland"):
            seed += 1
            put(folder / "MtSCCD_LUSC" / split / city / label / f"{city}_{label}.png", picture(seed, 60, 60))
    same, other = (f"train/{c}/residential/{c}_residential.png" for c in ("Hangzhou", "Wuhan"))
    put(folder / "pairs.csv", f"t1,t2\n{same},{other}\n{same},train/Wuhan/woodland/Wuhan_woodland.png\n")
    return folder


def make_llava(root: Path, name: str = "geochat_instruct") -> Path:
    """One table in LLaVA shape: an image in two rows, a conversation of two turns, a patch of DOTA."""
    folder = root / name
    for number, image in enumerate(("P0000_0001.png", "P0001_0003.png", "deep/x1.png")):
        put(folder / "images" / image, picture(200 + number, 56, 56))
    turns = [
        ("<image>\n[refer] where is <p>ship</p>?", "{<40><12><55><30>|<90>}"),
        ("Is it large?", "yes"),
    ]
    rows = [
        {"id": "P0000_0001", "image": "P0000_0001.png", "conversations": _turns(turns)},
        {"id": "x1", "image": "deep/x1.png", "conversations": _turns([("<image>\nWhat is shown?", "A harbour.")])},
        {"id": "P0000_0001b", "image": "P0000_0001.png", "conversations": _turns([("Any cars?\n<image>", "no")])},
        {"id": "P0001_0003", "image": "P0001_0003.png", "conversations": _turns([("<image>\nAny ships?", "yes")])},
    ]
    put(folder / f"{name}.json", json.dumps(rows))
    return folder


def _turns(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]


def make_vrsbench(root: Path) -> Path:
    """Annotations as a folder, images as the published zip; patches of DOTA and DIOR."""
    folder = root / "vrsbench"
    names = ("P0000_0001", "P0001_0007", "00123_0000")
    for number, name in enumerate(names):
        row = {
            "image": f"{name}.png",
            "caption": "A high-resolution image with two planes.",
            "objects": [{"obj_id": 0, "obj_cls": "plane", "obj_corner": [0.1] * 8, "is_unique": True}],
            "qa_pairs": [
                {"ques_id": 0, "question": "How many planes are there?", "type": "object quantity", "answer": "2"},
                {"ques_id": 1, "question": "Is it urban?", "type": "rural or urban", "answer": "Urban"},
            ],
        }
        put(folder / "Annotations_train" / f"{name}.json", json.dumps(row))
        images = folder / "Images_train.zip"
        with zipfile.ZipFile(images, "a") as archive:
            archive.writestr(f"Images_train/{name}.png", picture(300 + number, 48, 48))
    return folder


def make_dota(root: Path) -> Path:
    """`train/images` with v1 labels; one parent whose GSD is null."""
    folder = root / "dota"
    for number, (name, (gsd, objects)) in enumerate(DOTA_OBJECTS.items()):
        put(folder / "train" / "images" / f"{name}.png", picture(400 + number, 80, 60))
        boxes = "".join(f"1 1 9 1 9 9 1 9 {label} 0\n" for label in objects)
        put(folder / "train" / "labelTxt" / f"{name}.txt", f"imagesource:GoogleEarth\ngsd:{gsd}\n{boxes}")
    return folder


def make_fmow(root: Path) -> Path:
    """One place at two GSDs (`_rgb`, `_msrgb`), and one image with boxes of two categories."""
    folder = root / "fmow"
    for place, categories in (("airport_0", ["airport"]), ("barn_3", ["barn", "crop_field"])):
        category = place.rsplit("_", 1)[0]
        for product, side in (("rgb", 80), ("msrgb", 20)):
            stem = folder / "train" / category / place / f"{place}_0_{product}"
            put(stem.with_suffix(".jpg"), picture(500 + side, side, side, "JPEG"))
            put(stem.with_suffix(".json"), json.dumps(_fmow_record(categories, side)))
    return folder


def _fmow_record(categories: list[str], side: int) -> dict[str, Any]:
    """Figures of a real record (GeoEye-1 near 40 N): `gsd` says 0.468, the degree grid 0.421 m."""
    step = 4.6e-06 * 80 / side
    boxes = [{"ID": k, "box": [8 * k, 4, 8, 8], "category": name} for k, name in enumerate(categories)]
    corners = "(-74.0 40.001, -73.999 40.001, -73.999 40.0, -74.0 40.0, -74.0 40.001)"
    return {
        "gsd": 0.468, "pan_resolution_dbl": 0.468, "multi_resolution_dbl": 1.87, "sensor_platform_name": "GEOEYE01",
        "mean_pixel_width": step, "mean_pixel_height": step, "img_width": side, "img_height": side,
        "raw_location": f"POLYGON ({corners})", "country_code": "USA", "bounding_boxes": boxes,
    }  # fmt: skip


def make_geotiffs(root: Path) -> Path:
    """Two UTM rasters of 0.5 and 20 m (16-bit), one without CRS, and `questions.jsonl`."""
    folder = root / "geotiffs"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for name, gsd_m, dtype in (
        ("fine.tif", 0.5, "uint8"),
        ("coarse.tif", 20.0, "uint16"),
        ("nowhere.tif", None, "uint8"),
    ):
        place = {"crs": "EPSG:32631", "transform": rasterio.Affine(gsd_m, 0, 5e5, 0, -gsd_m, 5e6)} if gsd_m else {}
        shape = {"driver": "GTiff", "width": 40, "height": 30, "count": 3, "dtype": dtype}
        with _quiet(), rasterio.open(folder / name, "w", **shape, **place) as dataset:
            dataset.write(rng.integers(1, 250, (3, 30, 40)).astype(dtype))
    rows = [
        {"image": "fine.tif", "question": "Is there a road?", "answer": "yes", "type": "presence"},
        {"image": "coarse.tif", "question": "How wide is it?", "answer": "40 m", "family": "scale_specific"},
        {"image": "fine.tif", "question": "Which?", "answer": "road", "options": ["road", "rail"]},
        {"image": "nowhere.tif", "question": "Is there a road?", "answer": "no"},
        {"image": "fine.tif", "question": "Held out?", "answer": "yes", "split": "test"},
    ]
    put(folder / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """A raster without georeference is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def make_all(root: Path) -> Path:
    """Every miniature, in the folders that `experiments/corpus/geoscale_vqa.yaml` expects."""
    for make in (
        make_xben,
        make_patternnet,
        make_mtsccd,
        make_llava,
        make_vrsbench,
        make_dota,
        make_fmow,
        make_geotiffs,
    ):
        make(root)
    make_llava(root, "rs_gpt4v")
    return root
