"""Ours against its twins, on the same questions."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.evaluation import compare as module
from scaleearth_pl.evaluation.compare import compare
from scaleearth_pl.evaluation.predictions import RunFolder, write_rows


@pytest.fixture
def runs(run_folder, predictions):
    """Ours is right but for one question in twenty; plain misses every scale-specific question of half the images."""
    return {
        "ours": RunFolder.load(run_folder("ours", predictions(lambda i, q: (4 * i + q) % 20 != 0))),
        "plain": RunFolder.load(run_folder("plain", predictions(lambda i, q: q % 2 == 0 or i % 2 == 0))),
    }


def test_a_run_against_itself_is_exactly_zero(runs):
    entry = compare([runs["ours"]], {"plain_lora": [runs["ours"]]}).document["versus"]["plain_lora"]
    assert (entry["estimate"], entry["ci95"]) == (0.0, [0.0, 0.0])


def test_difference_has_the_right_size_sign_and_group(runs):
    document = compare([runs["ours"]], {"plain_lora": [runs["plain"]]}).document
    entry = document["versus"]["plain_lora"]
    assert entry["estimate"] == pytest.approx(0.95 - 0.75)
    assert entry["groups"]["by_family/scale_specific"]["estimate"] == pytest.approx(0.5)
    assert entry["groups"]["by_family/identification"]["estimate"] == pytest.approx(-0.1)
    assert {"by_tier/high", "by_tier/mid", "by_tier/low"} <= set(entry["groups"])
    low, high = entry["ci95"]
    assert low < entry["estimate"] < high
    back = compare([runs["plain"]], {"gsd_text": [runs["ours"]]}).document["versus"]["gsd_text"]
    assert back["estimate"] == -entry["estimate"]
    assert back["ci95"] == pytest.approx([-high, -low])


def test_order_of_rows_does_not_matter(runs):
    shuffled = replace(runs["plain"], predictions=tuple(reversed(runs["plain"].predictions)))
    first, second = (compare([runs["ours"]], {"bucketed": [r]}).document["versus"] for r in (runs["plain"], shuffled))
    assert first == second


def test_seeds_stand_one_by_one_and_together(runs):
    document = compare([runs["ours"], runs["plain"]], {"plain_lora": [runs["plain"], runs["ours"]]}).document
    entry = document["versus"]["plain_lora"]
    assert [s["estimate"] for s in entry["seeds"]] == pytest.approx([0.2, -0.2])
    assert [s["accuracy_ours"] for s in entry["seeds"]] == pytest.approx([0.95, 0.75])
    assert (entry["estimate"], entry["ci95"]) == (0.0, [0.0, 0.0])


def test_plain_lora_is_the_image_only_floor(runs):
    details = compare([runs["ours"]], {"plain_lora": [runs["plain"]]}).details
    assert details["floors"]["image_only"]["overall"] == 0.75
    assert details["accuracies_by_seed"]["plain_lora"][0]["overall"] == 0.75
    assert compare([runs["ours"]], {"gsd_text": [runs["plain"]]}).details["floors"]["image_only"] is None


def test_other_questions_answers_places_or_stage_one_are_refused(runs):
    rows = runs["plain"].predictions
    others = {
        "fewer": replace(runs["plain"], predictions=rows[1:]),
        "answer": replace(runs["plain"], predictions=(replace(rows[0], answer="maybe"), *rows[1:])),
        "place": replace(runs["plain"], predictions=(replace(rows[0], place_id="else"), *rows[1:])),
    }
    for run in others.values():
        with pytest.raises(ConfigError, match="same questions: 1 differ"):
            compare([runs["ours"]], {"plain_lora": [run]})
    stage1 = replace(runs["plain"], run=replace(runs["plain"].run, stage1="runs/other/latest/hf"))
    with pytest.raises(ConfigError, match="another stage 1"):
        compare([runs["ours"]], {"plain_lora": [stage1]})
    from_nothing = replace(runs["plain"], run=replace(runs["plain"].run, stage1=None))
    with pytest.raises(ConfigError, match="another stage 1"):
        compare([runs["ours"]], {"plain_lora": [from_nothing]})
    with pytest.raises(ConfigError, match="number of seeds"):
        compare([runs["ours"]], {"plain_lora": [runs["plain"]] * 2})
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([runs["ours"]], {})


def test_command_line_writes_document_details_and_chart(runs, tmp_path, capsys):
    ours, plain = str(runs["ours"].path), str(runs["plain"].path)
    twins = [f"--twin={name}={plain}" for name in ("plain_lora", "gsd_text", "bucketed")]
    out = tmp_path / "made" / "comparison.json"
    assert module.main([ours, *twins, "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert list(document["versus"]) == ["plain_lora", "gsd_text", "bucketed"]
    assert {"estimate", "ci95"} <= set(document["versus"]["bucketed"])
    assert (out.parent / "comparison_details.json").is_file()
    with Image.open(out.with_suffix(".png")) as chart:
        assert min(chart.size) > 200
        assert len(chart.convert("RGB").getcolors(1 << 20)) > 5
    assert "scale_specific" in capsys.readouterr().out
    assert module.main([ours, "--twin", f"no_tiers={plain}", "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())["versus"]) == ["no_tiers"]
    for name, says in (("plain-lora", "lower-case"), ("plain_lor", "write plain_lora"), ("ours", "lower-case")):
        assert module.main([ours, "--twin", f"{name}={plain}"]) == 2
        assert says in capsys.readouterr().err
    assert module.main([ours, "--twin", "plain_lora=/nowhere"]) == 2
    write_rows(runs["plain"].path / "predictions.jsonl", runs["plain"].predictions[:9])
    assert module.main([ours, *twins, "--out", str(out)]) == 2
    assert "same questions" in capsys.readouterr().err
