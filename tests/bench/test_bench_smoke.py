"""The benchmark measures what it says: same questions, same gradient, honest arithmetic. Seconds, tiny shapes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import report
from bench.gradients import ours_error, peer_error, relative_error
from bench.memory import peak_bytes
from bench.ours import Contender, LoraShape, build, micro_batches
from bench.shapes import Bank, Shape, write_corpus
from bench.timing import interleave, rates, ratio, that_fit
from scaleearth_pl.core.errors import ConfigError

SHAPE = Shape(visual_tokens=4, questions=6, images=2)
LORA = LoraShape(rank=6, lora_alpha=12)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return Bank(write_corpus(tmp_path_factory.mktemp("bench") / "corpus", SHAPE), SHAPE)


def test_sequences_hold_each_question_with_its_own_image(bank):
    numbers = [1, 4, 8]
    trees, sequences = bank.trees(numbers, k=1), bank.sequences(numbers)
    lengths = (trees.prefix_len_G + trees.branch_len_B).tolist()
    assert sequences["attention_mask"].sum(1).tolist() == lengths
    for row, (start, length) in enumerate(zip(trees.prefix_start_G.tolist(), lengths, strict=True)):
        assert torch.equal(sequences["input_ids"][row, :length], trees.input_ids_T[start : start + length])
        # transformers' labels sit at the token itself, our targets at the position before it
        assert torch.equal(sequences["labels"][row, 1:length], trees.target_ids_T[start : start + length - 1])
    patches = sequences["pixel_values"].view(3, -1, sequences["pixel_values"].shape[-1])
    assert torch.equal(patches[0], patches[1])
    assert not torch.equal(patches[0], patches[2])


def test_micro_batches_hold_every_question_once_within_the_budget(bank):
    batches = micro_batches(bank, range(12), k=4, micro_tokens=120)
    assert sum(len(batch.branches) for batch in batches) == 12
    assert len(batches) > 1
    assert all(len(batch.input_ids_T) <= 120 for batch in batches)
    assert max(int(torch.bincount(batch.tree_of_branch_B).max()) for batch in batches) == 4


def test_a_turn_of_ours_leaves_no_gradient_behind(bank):
    model = build(bank.processor, LORA)
    assert Contender(model, bank, range(6), k=6, micro_tokens=500).work() == 6
    assert all(p.grad is None for p in model.parameters())


def test_ours_has_the_gradient_of_plain_sequences(bank):
    assert ours_error(bank, LORA, range(6), k=6) < 1e-5


@pytest.mark.slow
def test_peers_have_the_gradient_of_plain_sequences(bank, tmp_path):
    pytest.importorskip("trl", reason="extra `bench`")
    from bench.peers import Peer, quiet

    with quiet():
        for name in ("T0", "T1", "T2"):
            peer = Peer(name, bank, tmp_path, lora=LORA, batch_size=3)
            assert peer_error(peer, LORA, range(3)) < 1e-5, name


def test_side_panels_measure_t2_at_every_batch_size_and_keep_the_best(monkeypatch, tmp_path):
    """The rates are planted, in turn for each shape; that the contenders do what their names say is not."""
    pytest.importorskip("trl", reason="extra `bench`")
    from bench import curves

    sizes, planted = ["1", "2", "4", "8"], iter(("2", "8"))

    def clocked(work, *, rounds):
        assert [int(name) for name in sizes] == [work[name]() for name in sizes]
        assert (list(work), work["ours"]()) == ([*sizes, "ours"], SHAPE.questions)
        best = next(planted)
        return {name: [0.1 if name == "ours" else 0.5 if name == best else 0.6] * rounds for name in work}

    monkeypatch.setattr(curves, "interleave", clocked)
    shapes = {4.0: SHAPE, 16.0: replace(SHAPE, visual_tokens=16)}
    points = curves.over_shapes(tmp_path, LORA, shapes, rounds=1, micro_tokens=500)
    assert [(p["x"], p["t2_batch_size"], p["t2"]) for p in points] == [(4.0, 2, 2.0), (16.0, 8, 2.0)]
    assert [p["ratio_to_t2"] for p in points] == pytest.approx([5, 5])


def test_on_a_gpu_every_contender_has_questions(monkeypatch):
    pytest.importorskip("trl", reason="extra `bench`")
    from bench import gpu

    for n in (32, 47, 100):
        turns = gpu.turns_of(n)
        assert list(turns) == list(dict.fromkeys((1, 16, 32, n)))
        assert all(len(numbers) >= k and len(numbers) % k == 0 for k, numbers in turns.items())
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--size", "tiny", "--questions", "31"])
    with pytest.raises(ConfigError, match=r"--questions.*31.*Remedy: give 32 or more"):
        gpu.main()


def test_gradient_error_sees_a_wrong_gradient():
    reference = {"a": torch.ones(4), "b": torch.zeros(2)}
    assert relative_error({"a": torch.ones(4), "b": torch.zeros(2)}, reference) == 0
    assert relative_error({"a": torch.full((4,), 1.1), "b": torch.zeros(2)}, reference) == pytest.approx(0.1, rel=1e-5)
    with pytest.raises(ValueError, match="different parameters"):
        relative_error({"a": torch.ones(4)}, reference)


def test_contenders_take_turns_and_ratios_are_of_one_round():
    order = []

    def contender(name, count):
        return lambda: order.append(name) or count

    seconds = interleave({"x": contender("x", 1), "y": contender("y", 2)}, rounds=2)
    assert order == ["x", "y", "x", "y", "y", "x"]
    fixed = {"x": [1.0, 10.0, 2.0], "y": [2.0, 20.0, 8.0]}
    assert ratio(fixed, "y", "x") == 2.0
    assert rates(fixed)["x"] == 0.5
    assert set(seconds) == {"x", "y"}


def test_peak_counts_what_is_held_at_once():
    def work():
        for _ in range(3):
            torch.zeros(250_000).add_(1)

    assert peak_bytes(work) == pytest.approx(1_000_000, rel=0.01)


def test_committed_results_make_a_report(tmp_path):
    """Every ladder in the repository has the promised columns; those of `make bench` can be drawn, parts of one too."""
    files = sorted((Path(report.__file__).parent / "results").glob("*.json"))
    promised = {"trainer", "k", "visual_tokens", "qas_per_second", "ratio_to_t2", "peak_bytes", "hardware", "commit"}
    ladders = 0
    for file in files:
        results = json.loads(file.read_text())
        if not results.get("schema", "").startswith("scaleearth-bench"):
            continue  # another tool's
        assert all(promised | {"grad_rel_error"} <= set(row) for row in results.get("rows", []))
        if results["schema"] != "scaleearth-bench/1":
            continue  # a GPU's, which prints its own table
        ladders += "rows" in results
        assert ("**ours, K = 100**" in report.markdown(results)) == ("rows" in results)
        report.draw(results, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert ladders


def test_a_report_of_one_section_says_what_was_not_run(tmp_path):
    results = {"hardware": "h", "threads": 1, "clock": "wall", "commit": "c"}
    results["over_k"] = [{"k": k, "qas_per_second": k, "ratio_to_k1": k, "token_ratio": k} for k in (1, 4)]
    assert report.markdown(results).count("not run") == len(report.BARS)
    report.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_contender_that_does_not_fit_costs_nobody_elses_figures(capsys: pytest.CaptureFixture[str]) -> None:
    def too_large() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fitting = that_fit({"T2-32": too_large, "ours-100": lambda: 1})
    assert list(fitting) == ["ours-100"]
    assert "T2-32 left out: CUDA out of memory" in capsys.readouterr().err
