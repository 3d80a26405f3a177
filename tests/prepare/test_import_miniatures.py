"""Every importer on a miniature of its archive: counts, GSD and where it came from, splits; and the YAML that ships."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes.archives import make_all, make_llava

from scaleearth_pl.core.errors import ConfigError, GsdError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.core.sample import Sample
from scaleearth_pl.data.images import decode_rgb
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.prepare.corpus import EXIT_LEFT_OUT, main
from scaleearth_pl.prepare.importers.build import ArchivesConfig, import_archives
from scaleearth_pl.prepare.importers.record import Found, Rejected
from scaleearth_pl.prepare.importers.registry import IMPORTERS, make_source
from scaleearth_pl.prepare.importers.store import read_image

SHIPPED = Path(__file__).parents[2] / "experiments" / "corpus" / "geoscale_vqa.yaml"
PARENTS = ["sources.geochat_instruct.parents=dota", "sources.vrsbench.parents=dota"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "corpus"
    changes = [word for change in (f"root={raw}", *PARENTS) for word in ("--set", change)]
    assert main([str(SHIPPED), *changes, "--out", str(out)]) == 0
    return out


def samples_of(root: Path) -> dict[str, Sample]:
    index = ShardIndex.load(root)
    reader = ShardReader(index)
    found = {}
    for row in range(len(index)):
        sample, data = reader.read(row)
        decode_rgb(data, index.text["ext"][row], size=(sample.width, sample.height), where="test")
        found[sample.image_id] = sample
    reader.close()
    return found


def records(kind: str, root: Path, **options: Any) -> tuple[dict[str, Found], list[Rejected]]:
    entries = list(make_source(kind, options, root).records())
    return {e.image_id: e for e in entries if isinstance(e, Found)}, [e for e in entries if isinstance(e, Rejected)]


def test_the_shipped_file_names_every_importer_and_explains_itself() -> None:
    text = SHIPPED.read_text()
    for word in ("Question", "Needs", "Cost", "Expected", "Run:"):
        assert f"# {word}" in text
    assert "scaleearth prepare experiments/corpus/geoscale_vqa.yaml" in text
    for kind in IMPORTERS:
        assert kind in text


def test_the_shipped_file_imports_every_miniature(built: Path) -> None:
    samples = samples_of(built)
    counted = Counter((s.source, s.split) for s in samples.values())
    assert counted == {
        ("rsvqa_xben", "train"): 4, ("patternnet", "train"): 6, ("mtsccd", "train"): 4, ("rs_gpt4v", "stage1"): 3,
        ("geochat_instruct", "train"): 3, ("vrsbench", "train"): 3, ("fmow", "train"): 2, ("dota", "train"): 2,
        ("geotiffs", "train"): 3,
    }  # fmt: skip
    report = json.loads((built / "import.json").read_text())
    assert report["skipped"] == ["rsvqa_lr", "rsvqa_hr"]
    assert sum(n for s in report["sources"].values() for n in s["questions"].values()) == sum(
        len(s.qas) for s in samples.values()
    )
    assert (built / "quarantine.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("image_id", "gsd_m", "provenance"),
    [
        ("rsvqa_xben-2", 10.0, Provenance.EXACT),
        ("patternnet-airplane-airplane001", 0.5394, Provenance.IMPRECISE),
        ("mtsccd-train-Wuhan-woodland-Wuhan_woodland", 1.0, Provenance.NOMINAL),
        ("rs_gpt4v-P0000_0001", None, Provenance.UNKNOWN),
        ("geochat_instruct-P0000_0001", 0.26617, Provenance.NOMINAL),
        ("geochat_instruct-P0001_0003", None, Provenance.UNKNOWN),
        ("vrsbench-P0000_0001", 0.26617, Provenance.NOMINAL),
        ("vrsbench-P0001_0007", None, Provenance.UNKNOWN),
        ("vrsbench-00123_0000", 3.873, Provenance.IMPRECISE),
        ("fmow-train-airport_0_0_rgb", 0.4475, Provenance.EXACT),
        ("dota-P0000", 0.26617, Provenance.EXACT),
        ("dota-P0001", None, Provenance.UNKNOWN),
        ("geotiffs-fine", 0.5, Provenance.EXACT),
        ("geotiffs-coarse", 20.0, Provenance.EXACT),
        ("geotiffs-nowhere", None, Provenance.UNKNOWN),
    ],
)
def test_gsd_and_its_provenance(built: Path, image_id: str, gsd_m: float | None, provenance: Provenance) -> None:
    sample = samples_of(built)[image_id]
    assert sample.gsd_provenance is provenance
    assert sample.gsd_m_native == (None if gsd_m is None else pytest.approx(gsd_m, rel=2e-3))
    assert (sample.tier is Tier.UNKNOWN) == (gsd_m is None)


def test_equal_archives_give_equal_bytes(raw: Path, built: Path, tmp_path: Path) -> None:
    changes = [word for change in (f"root={raw}", *PARENTS) for word in ("--set", change)]
    assert main([str(SHIPPED), *changes, "--out", str(tmp_path / "again")]) == 0
    tars = sorted(p.relative_to(built) for p in built.rglob("*.tar"))
    assert tars == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.tar"))
    for tar in (*tars, Path("index.json")):
        assert (built / tar).read_bytes() == (tmp_path / "again" / tar).read_bytes()


def test_a_missing_source_stops_unless_it_is_optional(tmp_path: Path) -> None:
    make_llava(tmp_path)
    sources = {"geochat_instruct": {"kind": "llava"}, "fmow": {}}
    with pytest.raises(ConfigError, match=r"source is not there.*sources\.fmow"):
        import_archives(ArchivesConfig(root=tmp_path, sources=sources), tmp_path / "a")
    tally = import_archives(
        ArchivesConfig(root=tmp_path, sources={**sources, "fmow": {"optional": True}}), tmp_path / "b"
    )
    assert tally.skipped == ["fmow"]
    assert tally.images.total() == 3
    tally = import_archives(ArchivesConfig(root=tmp_path, sources={**sources, "fmow": None}), tmp_path / "c")
    assert tally.skipped == []


def test_what_was_left_out_sets_the_exit_status(tmp_path: Path) -> None:
    folder = make_llava(tmp_path / "raw")
    (folder / "images" / "deep" / "x1.png").unlink()
    file = tmp_path / "one.yaml"
    file.write_text(
        f"kind: archives\nroot: {tmp_path / 'raw'}\nmax_bad_share: 0.5\nsources: {{geochat_instruct: {{kind: llava}}}}\n"
    )
    arguments = [str(file), "--out", str(tmp_path / "out")]
    assert main(arguments) == EXIT_LEFT_OUT
    assert main(arguments) == EXIT_LEFT_OUT  # the finished corpus is found again, and so is the verdict
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert {"item": "deep/x1.png", "kind": "missing_image"}.items() <= json.loads(line).items()


def test_patternnet_takes_a_users_table_and_hash_splits(raw: Path, tmp_path: Path) -> None:
    root = raw / "patternnet"
    table = tmp_path / "gsd.csv"
    table.write_text("class,gsd_m,gsd_lo,gsd_hi\nairplane,0.3,,\nchristmas_tree_farm,0.5,0.25,1.0\n")
    found, _ = records("patternnet", root, gsd_table=str(table))
    (exact,) = found["patternnet-airplane-airplane001"].evidence.extra
    (between,) = found["patternnet-christmas_tree_farm-christmastreefarm001"].evidence.extra
    assert (exact.gsd_m, exact.provenance) == (0.3, Provenance.NOMINAL)
    assert (between.gsd_m, between.provenance) == (0.5, Provenance.IMPRECISE)
    assert between.sigma_log10 == pytest.approx(0.30103 / 3**0.5, rel=1e-4)
    misspelt = "patternnet-wastewater_treatment_plan-wastewatertreatmentplan001"
    assert found[misspelt].class_label == "wastewater treatment plant"
    shares = {"val": 0.3, "test": 0.3}
    parts = [set(records("patternnet", root, shares=shares, splits=[s])[0]) for s in ("train", "val", "test")]
    assert set.union(*parts) == set(found) and sum(map(len, parts)) == len(found)
    for broken, error in (("class,gsd\n", ConfigError), ("class,gsd_m\nbeach,1ft\n", GsdError)):
        table.write_text(broken)
        with pytest.raises(error):
            records("patternnet", root, gsd_table=str(table))


@pytest.mark.parametrize("spelling", ["wastewater_treatment_plan", "Wastewater treatment plant"])
def test_patternnets_table_may_use_either_spelling(raw: Path, tmp_path: Path, spelling: str) -> None:
    table = tmp_path / "gsd.csv"
    table.write_text(f"class,gsd_m\n{spelling},0.3\n")
    found, _ = records("patternnet", raw / "patternnet", gsd_table=str(table))
    assert sum(bool(f.evidence.extra) for f in found.values()) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("airplane,0.3\nairplanes,0.3\n", r"no folder.*airplanes.*airplane,"),
        (
            "wastewater_treatment_plan,0.3\nwastewater_treatment_plant,0.4\n",
            r"twice.*wastewater treatment plan'.*one spelling",
        ),
    ],
)
def test_patternnets_table_must_fit_its_folders(raw: Path, tmp_path: Path, rows: str, message: str) -> None:
    table = tmp_path / "gsd.csv"
    table.write_text("class,gsd_m\n" + rows)
    with pytest.raises(ConfigError, match=message):
        records("patternnet", raw / "patternnet", gsd_table=str(table))


def test_an_archive_gives_the_records_of_its_folder(raw: Path, tmp_path: Path) -> None:
    for kind, folder in (("patternnet", "PatternNet"), ("mtsccd", "MtSCCD_LUSC")):
        shutil.make_archive(str(tmp_path / kind / folder), "zip", raw / kind, folder)
        from_folder, _ = records(kind, raw / kind)
        from_zip, rejected = records(kind, tmp_path / kind)
        assert not rejected
        assert set(from_zip) == set(from_folder)
        for image_id, found in from_zip.items():
            assert read_image(found.image) == read_image(from_folder[image_id].image)
            assert found.evidence == from_folder[image_id].evidence


def test_mtsccd_splits_by_folder_and_city(raw: Path) -> None:
    for split, city in (("val", "nanjing"), ("test", "hefei")):
        found, rejected = records("mtsccd", raw / "mtsccd", splits=[split])
        assert {f.split for f in found.values()} == {split}
        assert {f.region_id for f in found.values()} == {f"mtsccd-{city}"}
        assert {f.class_label for f in found.values()} == {"residential", "woodland"}
        assert not rejected


def test_conversations_keep_their_order_and_their_history(raw: Path) -> None:
    found, _ = records("llava", raw, name="geochat_instruct")
    qas = found["geochat_instruct-P0000_0001"].qas
    assert [(q.question, q.type) for q in qas] == [
        ("[refer] where is <p>ship</p>?", "refer"), ("Is it large?", "instruction"), ("Any cars?", "instruction"),
    ]  # fmt: skip
    assert [q.turns for q in qas] == [None, ((qas[0].question, qas[0].answer),), None]
    alone, _ = records("llava", raw, name="geochat_instruct", history=False)
    assert all(q.turns is None for f in alone.values() for q in f.qas)
    assert found["geochat_instruct-P0000_0001"].region_id == "dota-P0000"


def test_dota_asks_of_absent_classes_too(raw: Path) -> None:
    found, _ = records("dota", raw / "dota")
    qas = {q.question: q.answer for q in found["dota-P0000"].qas}
    assert qas["Is there a plane in the image?"] == "yes"
    assert qas["How many objects of the class plane are in the image?"] == "2"
    answers = Counter(a for q, a in qas.items() if q.startswith("Is there"))
    assert answers["yes"] == answers["no"] == 2


def test_fmow_products_share_a_place_and_boxes_are_asked_apart(raw: Path) -> None:
    both, _ = records("fmow", raw / "fmow", products=["rgb", "msrgb"])
    assert len(both) == 4
    assert len({f.place_id for f in both.values()}) == 2
    barn = both["fmow-train-barn_3_0_rgb"].qas
    assert [q.answer for q in barn] == ["barn", "crop field"]
    assert "[100, 50, 200, 150]" in barn[1].question
    with pytest.raises(ConfigError, match="unknown product"):
        records("fmow", raw / "fmow", products=["pan"])


def test_geotiffs_group_questions_and_leave_other_splits_alone(raw: Path) -> None:
    found, rejected = records("geotiffs", raw / "geotiffs")
    assert not rejected
    assert [q.question for q in found["geotiffs-fine"].qas] == ["Is there a road?", "Which?"]
    assert found["geotiffs-fine"].qas[1].options == ("road", "rail")
    held_out, _ = records("geotiffs", raw / "geotiffs", splits=["test"])
    assert set(held_out) == {"geotiffs-fine"}


def test_only_train_is_taken_unless_told_otherwise() -> None:
    for kind, cls in IMPORTERS.items():
        options = {"name": "x"} if kind == "llava" else {}
        assert "train" in cls.__dataclass_fields__["splits"].default
        assert not {"val", "test"} & set(make_source(kind, options, Path("/nowhere")).splits)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kind": "mars"}, "x"),
        ({"kind": "fmow", "sead": 1}, "x.sead"),
        ({"kind": "fmow", "splits": "train"}, "x.splits"),
        ({"kind": "fmow", "splits": ["dev"]}, "splits"),
        ({"kind": "fmow", "splits": []}, "splits"),
        ({"kind": "llava", "history": "yes"}, "x.history"),
        ({"kind": "llava", "name": "Geo Chat"}, "name"),
        ({"kind": "patternnet", "shares": {"val": 0.9, "dev": 0.3}}, "x.shares"),
        ({"kind": "dota", "max_count": 2.5}, "x.max_count"),
    ],
)
def test_wrong_options_name_their_field(options: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"field '{field}'"):
        make_source("x", options, tmp_path)
