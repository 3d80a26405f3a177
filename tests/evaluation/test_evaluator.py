"""The evaluator: the same verdicts as the model's own forward, under every view; resumable; leaks refused."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from fakes.corpus import fake_sample
from fakes.pairs import make_pair_corpus
from fakes.runs import DATA, shallow_hf
from fakes.subjects import run_folder_of, tiny_subject

from scaleearth_pl.core.errors import CheckpointError, ConfigError, GsdError
from scaleearth_pl.core.gsd import Provenance, Tier
from scaleearth_pl.data.collate import collate, encode_tree
from scaleearth_pl.data.images import image_size
from scaleearth_pl.data.shards import ShardIndex
from scaleearth_pl.evaluation.evaluator import blind, command
from scaleearth_pl.evaluation.evaluator import run as evaluator_run
from scaleearth_pl.evaluation.evaluator import views as evaluator_views
from scaleearth_pl.evaluation.evaluator.command import evaluate_corpus, gather, main, views_of
from scaleearth_pl.evaluation.evaluator.corpus import CorpusSplit
from scaleearth_pl.evaluation.evaluator.engine import grouped, run_views
from scaleearth_pl.evaluation.evaluator.model import load_subject
from scaleearth_pl.evaluation.evaluator.options import check_together, parser, policies_of
from scaleearth_pl.evaluation.evaluator.row import floors_of, floors_table
from scaleearth_pl.evaluation.evaluator.run import Decoding
from scaleearth_pl.evaluation.evaluator.views import View, spoof_views, standard_normal
from scaleearth_pl.evaluation.floors import compute_floors
from scaleearth_pl.evaluation.predictions import read_predictions, read_sse_u
from scaleearth_pl.evaluation.rsvqa.ours import rsvqa_scores
from scaleearth_pl.evaluation.tables import percent
from scaleearth_pl.model.adapter_files import base_hash
from scaleearth_pl.model.resolver import Resolver, ResolverConfig
from scaleearth_pl.prepare.write import ShardWriter
from scaleearth_pl.serving.export import main as export

METADATA = View(policy="metadata")


@pytest.fixture(scope="module")
def subject(fake_corpus):
    return tiny_subject(fake_corpus)


@pytest.fixture(scope="module")
def group(fake_corpus, subject):
    return list(CorpusSplit.open(fake_corpus, "test").images(subject))


def reference(subject, group, resolver, shift=0.0):
    """The model's own forward: (right or wrong, summed cross-entropy)."""
    trees = [encode_tree(a.sample, a.images, a.questions, subject.processor, boundaries=_tiers()) for a in group]
    batch = collate(trees)
    batch = replace(batch, log10_gsd_G=batch.log10_gsd_G + shift)
    subject.model.resolver = Resolver(resolver)
    with torch.no_grad():
        losses = subject.model(batch)
    return subject.model.exact_match(losses.argmax_N, batch).numpy(), float(losses.ce_sum), batch


def _tiers():
    from scaleearth_pl.core.gsd import TierBoundaries

    return TierBoundaries()


@pytest.mark.parametrize(
    ("view", "config"),
    [
        (METADATA, ResolverConfig()),
        (View(policy="predicted"), ResolverConfig(policy="predicted")),
        (View(policy="fused"), ResolverConfig(policy="fused")),
        (View(policy="spoof", spoof_gsd_m=0.05), ResolverConfig(policy="spoof", spoof_gsd_m=0.05)),
    ],
)
def test_a_view_is_the_models_own_forward_under_that_policy(subject, group, view, config):
    said = run_views(subject, group, [METADATA, view])
    right_B, ce_sum, batch = reference(subject, group, config)
    n_B = [len(subject.processor.branch(q).answer) for a in group for q in a.questions]
    assert (said.correct_VB[1] == right_B).all()
    assert float((said.answer_nll_VB[1] * n_B).sum()) == pytest.approx(ce_sum, rel=1e-5)
    if view is not METADATA:
        assert not np.allclose(said.answer_nll_VB[0], said.answer_nll_VB[1], rtol=1e-6)
    assert [b.qa_id for b in said.batch.branches] == [b.qa_id for b in batch.branches]


def test_generated_text_is_the_models_answer(subject, group):
    said = run_views(subject, group, [METADATA], generate=True, max_new_tokens=4)
    _, _, batch = reference(subject, group, ResolverConfig())
    with torch.no_grad():
        tokens = subject.model.answer(batch, max_new_tokens=4)
    decode = subject.processor.tokenizer.decode
    assert said.texts == (tuple(decode(t, skip_special_tokens=True).strip() for t in tokens),)


def test_groups_change_nothing_but_memory(subject, group):
    whole = run_views(subject, group, [METADATA]).answer_nll_VB
    parts = [run_views(subject, g, [METADATA]).answer_nll_VB for g in grouped(iter(group), subject, budget_tokens=1)]
    assert len(parts) == len(group)
    assert np.concatenate(parts, axis=1) == pytest.approx(whole, rel=1e-4)


def test_a_group_is_closed_before_its_decoding_cache_is_too_large(subject, group):
    """The cache is a rectangle: beside one long question, each short one takes as many slots. Teacher-forced, none does."""
    long = replace(group[0].questions[0], question="1234567890" * 100)
    stream = [replace(group[0], questions=(long,)), *[group[1]] * 12]
    budget = sum(asked.size(subject, 24).n_tokens for asked in stream)

    def sizes(groups):
        return [sum(some[1:], some[0]) for some in ([a.size(subject, 24) for a in g] for g in groups)]

    parts = list(grouped(iter(stream), subject, budget_tokens=budget, max_new_tokens=24))
    assert [asked for part in parts for asked in part] == stream and len(parts) > 1
    assert all(size.fits(budget) for size in sizes(parts)) and not sizes([stream])[0].fits(budget)
    assert list(grouped(iter(stream), subject, budget_tokens=budget)) == [stream]


def test_noise_is_paired_and_zero_noise_is_none(subject, group):
    views = [METADATA, *(View(policy="metadata", noise_decades=x) for x in (0.0, 0.5))]
    nll = run_views(subject, group, views).answer_nll_VB
    assert (nll[0] == nll[1]).all() and not np.allclose(nll[0], nll[2])
    draws = np.array([standard_normal(f"image-{i}", 0) for i in range(4000)])
    assert abs(draws.mean()) < 0.05 and draws.std() == pytest.approx(1, abs=0.04)
    assert standard_normal("a", 0) == standard_normal("a", 0) != standard_normal("a", 1)


def test_gsd_text_reads_the_view_as_words(fake_corpus):
    subject = tiny_subject(fake_corpus, gsd_text="metres", gate=_open_gate())
    group = list(CorpusSplit.open(fake_corpus, "test").images(subject))
    nll = run_views(subject, group, [METADATA, View(policy="predicted"), *spoof_views([0.1, 10.0])]).answer_nll_VB
    assert all(not np.allclose(a, b) for i, a in enumerate(nll) for b in nll[:i])
    plain = tiny_subject(fake_corpus, gate=_open_gate())
    flat = run_views(plain, group, spoof_views([0.1, 1.0, 10.0])).answer_nll_VB
    assert (flat == flat[0]).all(), "plain LoRA is not told the GSD"


def _open_gate():
    from scaleearth_pl.model.gate import GateConfig

    return GateConfig(kind="open")


def test_a_pinned_scale_stays_pinned(fake_corpus, group):
    pinned = tiny_subject(fake_corpus, resolver=ResolverConfig(policy="spoof", spoof_gsd_m=1.0))
    nll = run_views(pinned, group, [METADATA, *spoof_views([0.01, 1.0])]).answer_nll_VB
    assert (nll == nll[0]).all()


def test_unknown_gsd_needs_a_prediction(subject, group):
    sample = replace(group[0].sample, gsd_m_native=None, gsd_provenance=Provenance.UNKNOWN, tier=Tier.UNKNOWN)
    unknown = [replace(group[0], sample=sample)]
    with pytest.raises(GsdError, match="predicted"):
        run_views(subject, unknown, [METADATA])
    assert run_views(subject, unknown, [View(policy="predicted")]).batch.trees[0].gsd_m is None


def test_views_are_checked_and_named():
    assert [v.name for v in views_of(["metadata", "spoof"], [0.1, 1.0])] == ["metadata", "spoof-0.1m", "spoof-1m"]
    for bad in ({"policy": "oracle"}, {"policy": "spoof"}, {"policy": "metadata", "spoof_gsd_m": 1.0}):
        with pytest.raises(ConfigError):
            View(**bad)
    with pytest.raises(ConfigError, match="noise"):
        View(policy="predicted", noise_decades=0.5)


def test_a_policy_that_the_views_know_is_one_that_the_command_takes(monkeypatch):
    """README's recipe: a name in views.py is enough for `evaluate`."""
    with pytest.raises(ConfigError, match="no such policy"):
        views_of(["oracle"], [])
    monkeypatch.setattr(evaluator_views, "POLICIES", (*evaluator_views.POLICIES, "oracle"))
    assert [v.name for v in views_of(["oracle"], [])] == ["oracle"]


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--xlrs", "x.jsonl", "--source", "rsvqa_hr"], "--source"),
        (["--xlrs", "x.jsonl", "--split", "test"], "--split"),
        (["--xlrs", "x.jsonl", "--type", "count"], "--type"),
        (["--xlrs", "x.jsonl", "--allow-leaks"], "--allow-leaks"),
        (["--xlrs", "x.jsonl", "--trained-on", "c"], "--trained-on"),
        (["--xlrs", "x.jsonl", "--vlmevalkit-compat"], "--vlmevalkit-compat"),
        (["--xlrs", "x.jsonl", "--max-tiles", "4"], "--max-tiles"),
        (["--corpus", "c", "--pixels", "tiles"], "--pixels"),
        (["--corpus", "c", "--max-pixels", "4096"], "--max-pixels"),
        (["--corpus", "c", "--max-tiles", "4"], "--max-tiles"),
        (["--corpus", "c", "--policy", "metadata", "--spoof-gsd-m", "1"], "--spoof-gsd-m"),
        ([], "no benchmark named"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_before_a_model_is_loaded(words, option, capsys):
    assert main(["no-such-run", *words]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (option in told and "leave it out" in told) or (option in told and "--corpus" in told)


def test_a_spoofed_gsd_asks_for_spoofing_as_in_ask():
    args = parser().parse_args(["run", "--corpus", "c", "--spoof-gsd-m", "0.1", "1"])
    check_together(args)
    assert [view.name for view in views_of(policies_of(args), args.spoof_gsd_m)] == ["spoof-0.1m", "spoof-1m"]
    assert policies_of(parser().parse_args(["run", "--corpus", "c"])) == ("metadata",)


@pytest.fixture
def corpus(fake_corpus):
    return CorpusSplit.open(fake_corpus, "test")


def test_results_on_disk_and_resume_after_a_cut(subject, corpus, tmp_path, monkeypatch):
    decoding = Decoding(generate=False, budget_tokens=1)
    whole = evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "a", decoding=decoding)
    folder = next((tmp_path / "a").glob("*/*/metadata"))
    predictions = read_predictions(folder / "predictions.jsonl")
    assert whole["counts"]["questions"] == len(predictions) and whole["counts"]["images"] == 4
    assert len(read_sse_u(folder / "sse_u.jsonl")) == 4 and not (folder / "part.jsonl").exists()

    calls = []
    real = evaluator_run.run_views

    def breaks_at_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluator_run, "run_views", breaks_at_third)
    with pytest.raises(RuntimeError):
        evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "b", decoding=decoding)
    part = next((tmp_path / "b").glob("*/*/metadata/part.jsonl"))
    part.write_bytes(part.read_bytes() + b'{"image_id": "half')
    begun_at = json.loads(part.read_text().splitlines()[0])["commit"]
    monkeypatch.setattr(evaluator_run, "current_commit", lambda: "fedcba")
    again = evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "b", decoding=decoding)
    assert len(calls) == 3 + 2, "two of four images were not asked again"
    assert read_predictions(part.parent / "predictions.jsonl") == predictions
    assert {k: again[k] for k in ("accuracy", "majority", "types")} == {
        k: whole[k] for k in ("accuracy", "majority", "types")
    }
    assert again["answered_at"] == sorted([begun_at, "fedcba"]), "two commits answered"

    with pytest.raises(ConfigError, match="another evaluation"):
        evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "b", decoding=Decoding(generate=True))
    assert [row["subject"] for row in gather(tmp_path / "b")] == ["tiny"]


def test_done_evaluations_are_read_not_repeated(subject, corpus, tmp_path, monkeypatch):
    decoding = Decoding(generate=False)
    first = evaluate_corpus(subject, corpus, METADATA, out=tmp_path, decoding=decoding)
    monkeypatch.setattr(evaluator_run, "run_views", None)
    assert evaluate_corpus(subject, corpus, METADATA, out=tmp_path, decoding=decoding) == first


def test_one_process_fills_a_folder_and_an_image_counts_once(subject, corpus, tmp_path, monkeypatch):
    decoding = Decoding(generate=False, budget_tokens=1)
    whole = evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "a", decoding=decoding)
    real = evaluator_run.run_views

    def begun_again(*args, **kwargs):
        with pytest.raises(ConfigError, match="another process is evaluating into this folder"):
            evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "b", decoding=decoding)
        monkeypatch.setattr(evaluator_run, "run_views", real)
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluator_run, "run_views", begun_again)
    evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "b", decoding=decoding)
    folder = next((tmp_path / "b").glob("*/*/metadata"))
    (folder / "row.json").unlink()
    rows = read_predictions(folder / "predictions.jsonl")
    lines = [
        {"image_id": rows[0].image_id, "answers": [asdict(r) for r in rows if r.image_id == rows[0].image_id]}
        | {"sse_u": None, "seconds": 0.1, "commit": "abc"}
    ]
    (folder / "part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in 2 * lines))
    again = evaluate_corpus(subject, corpus, METADATA, out=tmp_path / "b", decoding=decoding)
    assert again["counts"] == whole["counts"] and again["accuracy"] == whole["accuracy"]
    assert again["resumed_from"] == ["abc"]


def test_answers_of_uncommitted_code_are_never_those_of_this_code(subject, fake_corpus, tmp_path, capsys, monkeypatch):
    run = run_folder_of(subject, fake_corpus, tmp_path / "runs" / "tiny" / "v0")
    for module in (command, evaluator_run):
        monkeypatch.setattr(module, "current_commit", lambda: "abc-dirty")
    words = [str(run), "--corpus", str(fake_corpus), "--teacher-forced", "--out", str(tmp_path / "out")]
    told = []
    for policies in (["metadata"], ["metadata", "predicted"]):
        assert main([*words, "--policy", *policies]) == 0
        told.append(" ".join(capsys.readouterr().out.split()))
    assert "not repeated" not in told[0]
    assert "not repeated: evaluated at abc-dirty (this is abc-dirty)" in told[1]
    assert "uncommitted code made answers of tiny/fake/metadata: nobody" in told[1]
    resumed = {"subject": "a", "benchmark": "b", "configuration": {"view": "c"}, "commit": "new"}
    resumed |= {"answered_at": ["new", "old-dirty"], "resumed_from": ["old-dirty"]}
    assert "old-dirty (this is new)" in command.told_of_earlier([resumed], [], "new")[0]


def test_floors_of_question_and_gsd_stand_beside_an_accuracy(subject, corpus, fake_corpus, tmp_path):
    decoding = Decoding(generate=False)
    plain = replace(tiny_subject(fake_corpus, gate=_open_gate()), name="plain", fingerprint="open" * 4)
    ours, untold = (evaluate_corpus(s, corpus, METADATA, out=tmp_path, decoding=decoding) for s in (subject, plain))
    rows = read_predictions(next(tmp_path.glob("tiny-*/*/metadata/predictions.jsonl")))
    found = compute_floors(rows, corpus_root=fake_corpus)
    majority, *looked_up, image_only = floors_of(ours, [ours, untold])
    assert looked_up == [found.question_only["overall"], found.question_gsd["overall"]]
    assert ours["floors"]["question_gsd"]["by_type"] and majority == ours["majority"]["overall"]
    assert image_only == untold["accuracy"]["overall"]["estimate"] and floors_of(ours, [ours])[3] is None
    old = {k: v for k, v in ours.items() if k != "floors"}
    assert floors_of(old, [old])[1:] == (None, None, None), "rows of earlier commits"
    cells = [column._cells for column in floors_table([ours, untold]).columns]
    assert [some[0] for some in cells[3:]] == [percent(x) for x in (majority, *looked_up, image_only)]
    assert all(len(some) == 1 for some in cells), "floors are of questions, not of models"
    assert floors_table([old]).columns[4]._cells == ["-"]
    train = CorpusSplit.open(fake_corpus, "train", limit_images=3)
    leaky = evaluate_corpus(subject, train, METADATA, out=tmp_path, decoding=decoding, allow_leaks=True)
    assert leaky["floors"]["question_gsd"] is None and "trained on" in leaky["floors"]["absent"]


def test_views_of_one_corpus_read_its_questions_once(subject, fake_corpus, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(blind, "compute_floors", lambda *a, **k: calls.append(1) or compute_floors(*a, **k))
    run = run_folder_of(subject, fake_corpus, tmp_path / "runs" / "tiny" / "v0")
    words = [str(run), "--corpus", str(fake_corpus), "--teacher-forced", "--out", str(tmp_path / "out")]
    assert main([*words, "--policy", "metadata", "predicted"]) == 0 and len(calls) == 1


def test_pseudo_gsds_that_differ_anywhere_have_answers_of_their_own(subject, corpus, tmp_path):
    assert [view.name for view in spoof_views([0.1, 30.0, 0.30001, 0.30004])][2:] == [
        "spoof-0.30001m",
        "spoof-0.30004m",
    ]
    decoding = Decoding(generate=False)
    for view in spoof_views([0.1, 1 / 3]):
        evaluate_corpus(subject, corpus, view, out=tmp_path, decoding=decoding)
    names = {folder.parent.name for folder in tmp_path.glob("*/*/*/plan.json")}
    assert names == {"spoof-0.1m", "spoof-0.333333333m"}
    with pytest.raises(ConfigError, match=r"another evaluation.*spoof_gsd_m"):
        evaluate_corpus(subject, corpus, spoof_views([1 / 3 + 1e-12])[0], out=tmp_path, decoding=decoding)
    plan = json.loads(next(tmp_path.glob("*/*/spoof-0.1m/plan.json")).read_text())
    assert plan["view"] == "spoof-0.1m" and "spoof_gsd_m" not in plan, "as earlier commits wrote it"


def test_a_damaged_sample_of_train_costs_the_floors_and_not_the_accuracy(subject, fake_corpus, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(fake_corpus, broken)
    index = ShardIndex.load(broken)
    row = int(index.rows(("train",))[0])
    shard = next(shard for shard in index.shards if shard.start <= row < shard.stop)
    with (broken / shard.file).open("r+b") as stream:
        stream.seek(int(index.number["json_offset"][row]) + 5)
        stream.write(b"\0" * 9)
    corpus = CorpusSplit.open(broken, "test")
    found = evaluate_corpus(subject, corpus, METADATA, out=tmp_path, decoding=Decoding(generate=False))
    assert found["accuracy"]["overall"] and found["floors"]["question_only"] is None
    assert shard.file in found["floors"]["absent"]


def test_unreadable_images_are_in_the_row_and_fatal_past_a_share(subject, fake_corpus, tmp_path, monkeypatch):
    """A score over the half of the images that were there would be a score of another benchmark."""
    broken = tmp_path / "broken"
    shutil.copytree(fake_corpus, broken)
    corpus = CorpusSplit.open(broken, "test")
    row = int(corpus.rows[0])
    shard = next(shard for shard in corpus.index.shards if shard.start <= row < shard.stop)
    with (broken / shard.file).open("r+b") as stream:
        stream.seek(int(corpus.index.number["image_offset"][row]) + 20)
        stream.write(b"\0" * 20)
    decoding = Decoding(generate=False)
    with pytest.raises(ConfigError, match=r"1 of 4 could not be read, more than 1%.*run again") as refused:
        evaluate_corpus(subject, corpus, METADATA, out=tmp_path, decoding=decoding)
    assert not list(tmp_path.glob("*/*/*/row.json"))
    monkeypatch.setattr(evaluator_run, "MAX_BAD_SHARE", 0.5)
    kept = evaluate_corpus(subject, CorpusSplit.open(broken, "test"), METADATA, out=tmp_path, decoding=decoding)
    assert kept["counts"]["images"] == 3 and kept["counts"]["unreadable_images"] == 1
    assert list(kept["unreadable"]) == [corpus.index.where(row)] and refused.value.field in kept["unreadable"]


def test_a_start_that_failed_does_not_stand_in_the_way_of_the_next(subject, fake_corpus, tmp_path):
    wrong = CorpusSplit.open(fake_corpus, "test", types=["presense"])
    with pytest.raises(ConfigError, match="nothing was evaluated"):
        evaluate_corpus(subject, wrong, METADATA, out=tmp_path, decoding=Decoding(generate=False))
    right = CorpusSplit.open(fake_corpus, "test")
    assert evaluate_corpus(subject, right, METADATA, out=tmp_path, decoding=Decoding(generate=False))["counts"][
        "images"
    ]


def test_what_a_run_says_it_was_trained_on_is_refused_whatever_the_split_is_called(subject, fake_corpus, tmp_path):
    content = ShardIndex.load(fake_corpus).content_hash
    run = run_folder_of(subject, fake_corpus, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["train_splits"] = ["train", "test"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "run.json").unlink(missing_ok=True)
    assert load_subject(run).trained_splits == {}
    (run / "run.json").write_text(json.dumps({"corpus_hash": content}))
    subject = load_subject(run)
    assert subject.trained_splits == {content: {"train", "test"}}
    test = CorpusSplit.open(fake_corpus, "test")
    assert len(test.leaked(trained_splits=subject.trained_splits)) == len(test.rows)
    assert test.leaked(trained_splits={"another corpus": {"test"}}) == []
    with pytest.raises(ConfigError, match="were trained on"):
        evaluate_corpus(subject, test, METADATA, out=tmp_path / "out")


def test_a_corpus_without_such_a_source_names_those_it_has(fake_corpus):
    source = CorpusSplit.open(fake_corpus, "test").index.text["source"][0]
    with pytest.raises(ConfigError, match=rf"in split 'test'.*its sources are.*{source}"):
        CorpusSplit.open(fake_corpus, "test", sources=["rsvqa_xx"])
    with pytest.raises(ConfigError, match="limit_images"):
        CorpusSplit.open(fake_corpus, "test", limit_images=0)


def test_trained_images_are_refused(subject, fake_corpus, tmp_path, monkeypatch):
    train = CorpusSplit.open(fake_corpus, "train", limit_images=3)
    with pytest.raises(ConfigError, match="3 of 3 evaluated images were trained on"):
        evaluate_corpus(subject, train, METADATA, out=tmp_path)
    assert CorpusSplit.open(fake_corpus, "test").leaked() == []
    row = evaluate_corpus(subject, train, METADATA, out=tmp_path, allow_leaks=True, decoding=Decoding(generate=False))
    assert row["counts"]["leaked_images"] == 3
    clean = CorpusSplit.open(fake_corpus, "test")
    decoding = Decoding(generate=False)
    assert evaluate_corpus(subject, clean, METADATA, out=tmp_path, decoding=decoding)["counts"]["leaked_images"] == 0
    monkeypatch.setattr(CorpusSplit, "leaked", lambda *_, **__: ["an image of the corpus that is named now"])
    with pytest.raises(ConfigError, match=r"another evaluation.*leaked_images"):
        evaluate_corpus(subject, clean, METADATA, out=tmp_path, decoding=decoding, allow_leaks=True)


def test_rows_name_what_they_mean(subject, corpus, tmp_path):
    row = evaluate_corpus(subject, corpus, METADATA, out=tmp_path, decoding=Decoding(max_new_tokens=2))
    for key in ("commit", "configuration", "harness", "split", "matcher", "types", "counts", "seconds", "majority"):
        assert row[key] not in (None, "", {}), key
    assert row["configuration"]["policy"] == "metadata" and row["matcher"] == "exact"
    assert row["sse_u"]["all"]["images"] == 4
    json.dumps(row, allow_nan=False)


def test_rsvqa_rows_get_every_matcher(prediction):
    rows = [
        prediction(qa_id=f"rsvqa_lr-q{i}", source="rsvqa_lr", type=t, answer=a, prediction=p)
        for i, (t, a, p) in enumerate([("count", "403", "427"), ("presence", "yes", "e"), ("presence", "no", "no")])
    ]
    scores = rsvqa_scores(rows)["rsvqa_lr"]
    assert {n: round(s["oa"], 3) for n, s in scores.items()} == {
        "official_binned": 0.667, "exact": 0.333, "lhrs": 1.0, "earthdial": 0.5, "internvl": 0.667,
    }  # fmt: skip
    assert rsvqa_scores([prediction(source="world")]) == {}


def test_run_folder_loads_to_the_same_answers(subject, group, fake_corpus, tmp_path, capsys, monkeypatch):
    folder = run_folder_of(subject, fake_corpus, tmp_path / "runs" / "tiny" / "v0")
    loaded = load_subject(folder)
    views = [METADATA, View(policy="predicted")]
    ours, theirs = (run_views(s, group, views).answer_nll_VB for s in (subject, loaded))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert load_subject(folder / "adapter").fingerprint == loaded.fingerprint
    described = hashlib.sha256((folder / "adapter" / "scaleearth.json").read_bytes()).hexdigest()
    named = "|".join([base_hash(shallow_hf(fake_corpus)), "abc", "1024", "16384", "none", described])
    assert loaded.folder == f"tiny-{hashlib.sha256(named.encode()).hexdigest()[:8]}", (
        "results lie in folders of this name"
    )
    words = [str(folder), "--corpus", str(fake_corpus), "--teacher-forced", "--out", str(tmp_path / "out")]
    assert main([*words, "--policy", "metadata", "predicted"]) == 0
    out = capsys.readouterr().out
    assert "predicted" in out and "majority" in out and "not repeated" not in out
    monkeypatch.setattr("scaleearth_pl.evaluation.evaluator.command.current_commit", lambda: "fedcba")
    assert main([*words, "--policy", "metadata", "predicted"]) == 0
    assert "not repeated: evaluated at" in (told := capsys.readouterr().out) and "this is fedcba" in told
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 2
    (folder / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match="which pixels"):
        load_subject(folder)


def test_what_export_native_wrote_answers_as_its_run(subject, group, fake_corpus, tmp_path):
    """The folder alone: no run around it, its base inside, the processor's sizes in `extra.processor`."""
    run = run_folder_of(subject, fake_corpus, tmp_path / "runs" / "tiny" / "v0")
    assert export([str(run), "--native", "--with-base", "--out", str(tmp_path / "made")]) == 0
    native = shutil.move(tmp_path / "made", tmp_path / "elsewhere")
    views = [METADATA, View(policy="predicted")]
    subjects = [load_subject(folder) for folder in (run, native)]
    ours, theirs = (run_views(s, group, views, generate=True, max_new_tokens=4) for s in subjects)
    assert (ours.answer_nll_VB == theirs.answer_nll_VB).all() and ours.texts == theirs.texts
    assert [s.name for s in subjects] == ["tiny", "elsewhere"] and subjects[1].trained_commit == "abc"


def test_a_run_of_stage_1_is_a_subject_without_adapters(fake_corpus, group, tmp_path):
    run = tmp_path / "runs" / "first" / "v0"
    shutil.copytree(shallow_hf(fake_corpus), run / "hf")
    with pytest.raises(CheckpointError, match="which pixels"):
        load_subject(run)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {k: DATA[k] for k in ("min_pixels", "max_pixels")}}))
    loaded = load_subject(run)
    assert (loaded.name, loaded.trained_commit, loaded.model.adapters) == ("first", None, {})
    assert load_subject(run / "hf").fingerprint == loaded.fingerprint
    nll = run_views(loaded, group, [METADATA, *spoof_views([10.0])]).answer_nll_VB
    assert (nll[0] == nll[1]).all()
    with pytest.raises(ConfigError, match="no such device"):
        load_subject(run, device="toaster")


def test_a_pair_is_asked_as_one_tree_and_leaks_by_either_image(tmp_path):
    root = tmp_path / "corpus"
    images = make_pair_corpus(root)
    subject = tiny_subject(root)
    asked = {a.sample.image_id: a for a in CorpusSplit.open(root, "test").images(subject)}
    assert {name: len(a.images) for name, a in asked.items()} == {"test-00000": 1, "test-00001": 2}
    answers = run_views(subject, [*asked.values()], [METADATA])
    assert answers.correct_VB.shape == (1, sum(len(a.questions) for a in asked.values()))
    assert answers.batch.tree_of_image_I.tolist() == [0, 1, 1]
    assert CorpusSplit.open(root, "test").leaked() == []
    other = tmp_path / "trained"
    with ShardWriter(other, corpus="other") as writer:
        second = images["test-00001"][1]
        writer.write(fake_sample(0, size=image_size(second, "jpg", where="test")), second, "jpg")
    assert CorpusSplit.open(root, "test").leaked(ShardIndex.load(other)) == ["test-00001"]
