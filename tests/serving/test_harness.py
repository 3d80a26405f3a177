"""Harness plug-in: requests of one image share a pass, the GSD comes from the document, and nothing needs lmms-eval."""

import importlib.metadata
import importlib.util
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from serving_fakes import picture

from scaleearth_pl.core.errors import ConfigError
from scaleearth_pl.core.gsd import TierBoundaries
from scaleearth_pl.core.sample import Question
from scaleearth_pl.data.collate import encode_tree
from scaleearth_pl.data.processor import with_options
from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.serving import harness_tasks
from scaleearth_pl.serving.harness import HarnessRequest, answer_requests, manifest, one_image
from scaleearth_pl.serving.harness_corpus import export_corpus, row_text
from scaleearth_pl.serving.query import Query

HARNESS = Path(harness_tasks.__file__).parent
QUESTIONS = ("Are there roads of 3 metres?", "Forest?")


def asked():
    return [
        HarnessRequest(image=picture(seed), text=f"<image>\n{text}", gsd_m=gsd_m)
        for seed, gsd_m in ((1, 0.3), (1, 20.0), (2, None))
        for text in QUESTIONS
    ]


def test_answers_are_those_of_asking_one_by_one(earth):
    alone = [earth.ask(r.image, r.text.removeprefix("<image>\n"), gsd_m=r.gsd_m).text for r in asked()]
    assert list(answer_requests(earth, asked(), policy=None, max_new_tokens=6)) == alone


def test_neighbours_about_one_image_share_a_tree(earth, monkeypatch):
    seen = []
    run = earth.run
    monkeypatch.setattr(earth, "run", lambda prepared, **kw: seen.extend(prepared) or run(prepared, **kw))
    list(answer_requests(earth, asked(), policy=None, max_new_tokens=2))
    assert [len(p.questions) for p in seen] == [2, 2, 2]


def test_until_ends_an_answer(earth):
    plain = next(answer_requests(earth, asked()[:1], policy=None, max_new_tokens=6))
    stop = plain[2:4]
    request = HarnessRequest(image=picture(1), text=QUESTIONS[0], gsd_m=0.3, until=(stop,))
    assert next(answer_requests(earth, [request], policy=None, max_new_tokens=6)) == plain[: plain.find(stop)]


def test_tasks_of_several_images_are_refused():
    with pytest.raises(ConfigError, match="one image"):
        one_image([picture(1), picture(2)], "task")
    assert one_image([picture(1)], "task").size == (64, 64)


@pytest.fixture
def fake_lmms_eval(monkeypatch):
    """The three names that the plug-in takes from lmms-eval, so that its own lines are tested without it."""
    api, registry = types.ModuleType("lmms_eval.api.model"), types.ModuleType("lmms_eval.models.registry_v2")

    class Lmms:
        def __init__(self):
            self.task_dict = {}

    api.lmms, registry.ModelManifest = Lmms, lambda **fields: types.SimpleNamespace(**fields)
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", api)
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    yield
    sys.modules.pop("scaleearth_pl.serving.harness_lmms", None)


def test_the_class_of_the_manifest_answers_requests(fake_lmms_eval, fake_run, earth):
    module, name = manifest().simple_class_path.rsplit(".", 1)
    model = getattr(importlib.import_module(module), name)(model=str(fake_run), gsd_field="gsd_m", max_new_tokens=6)
    documents = [{"gsd_m": 0.3, "image": picture(1)}, {"gsd_m": 20.0, "image": picture(1)}]
    model.task_dict = {"task": {"test": documents}}
    requests = [
        types.SimpleNamespace(args=(text, {"max_new_tokens": 6}, lambda doc: [doc["image"]], i, "task", "test"))
        for i, _ in enumerate(documents)
        for text in QUESTIONS
    ]
    expected = [earth.ask(d["image"], text, gsd_m=d["gsd_m"]).text for d in documents for text in QUESTIONS]
    assert model.generate_until(requests) == expected
    with pytest.raises(ConfigError, match="not offered"):
        model.loglikelihood(requests)


def lmms(fake_run, **arguments):
    """The model as lmms-eval would build it, with a task of three documents, one of which has no GSD."""
    model = importlib.import_module("scaleearth_pl.serving.harness_lmms").ScaleEarthLmms(str(fake_run), **arguments)
    model.task_dict = {"task": {"test": [{"gsd_m": m, "image": picture(1)} for m in (0.3, 20.0, None)]}}
    return model


def request(number, text="Forest?", **options):
    return types.SimpleNamespace(args=(text, options, lambda doc: [doc["image"]], number, "task", "test"))


def test_a_field_that_no_document_has_is_an_error(fake_lmms_eval, fake_run):
    """And not SSE-U's word in place of the GSD that was meant."""
    with pytest.raises(ConfigError, match="no such field"):
        lmms(fake_run, gsd_field="gsd").generate_until([request(0)])


def test_where_the_document_does_not_say_the_task_does(fake_lmms_eval, fake_run, monkeypatch):
    model, asked = lmms(fake_run, gsd_field="gsd_m", gsd_m=7.0), []
    prepare = model._assistant.prepare
    monkeypatch.setattr(model._assistant, "prepare", lambda query: asked.append(query.gsd_m) or prepare(query))
    model.generate_until([request(number) for number in range(3)])
    assert asked == [0.3, 20.0, 7.0]


def test_the_harness_asks_what_evaluate_asks(fake_lmms_eval, fake_corpus, fake_run, tmp_path, monkeypatch):
    """Image by image: the questions, the GSD and, of nominal samples too, its sigma."""
    model, asked = lmms(fake_run, gsd_field="gsd_m", policy="metadata", max_new_tokens=1), []
    prepare = model._assistant.prepare
    monkeypatch.setattr(model._assistant, "prepare", lambda query: asked.append(prepare(query)) or asked[-1])
    export_corpus(fake_corpus, tmp_path, split="test")
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    documents = [row | {"image": Image.open(tmp_path / row["image"])} for row in rows if row["gsd_m"]]
    model.task_dict = {"task": {"test": documents}}
    model.generate_until([request(i, text=document["question"]) for i, document in enumerate(documents)])
    theirs = [tree for tree in evaluated(fake_corpus, model._assistant.processor) if tree.info.gsd_m]
    assert any(question.options for tree in theirs for question in tree.asked)
    assert [[b.prompt for b in p.tree.branches] for p in asked] == [[b.prompt for b in t.branches] for t in theirs]
    assert [p.tree.prefix for p in asked] == [tree.prefix for tree in theirs]
    assert [p.tree.info.gsd_m for p in asked] == pytest.approx([tree.info.gsd_m for tree in theirs])
    assert [p.tree.sigma_log10 for p in asked] == [tree.sigma_log10 for tree in theirs]
    assert {tree.sigma_log10 for tree in theirs} == {0.01, 0.05}


def evaluated(corpus, processor):
    """The trees of the test split as the evaluator makes them."""
    index = ShardIndex.load(corpus)
    reader, trees = ShardReader(index), []
    for row in (row for shard in index.shards if shard.split == "test" for row in range(shard.start, shard.stop)):
        sample, data = reader.read(row)
        image = processor.image(Image.open(io.BytesIO(data)).convert("RGB"))
        trees.append(encode_tree(sample, [image], sample.qas, processor, boundaries=TierBoundaries()))
    reader.close()
    return trees


@pytest.mark.parametrize(("told", "heard"), [(0.05, 0.05), (None, 0.01), (0.0, 1e-6)])
def test_the_sigma_of_a_document_reaches_the_gate(earth, monkeypatch, told, heard):
    """As exact without one; a sample that is surer than a user may say is asked, not refused."""
    answers, run = [], earth.run
    monkeypatch.setattr(earth, "run", lambda *args, **kw: answers.extend(run(*args, **kw)) or answers)
    sure = HarnessRequest(image=picture(1), text="Forest?", gsd_m=0.3, gsd_sigma_log10=told)
    other = HarnessRequest(image=picture(1), text="Forest?", gsd_m=0.3, gsd_sigma_log10=1.0)
    list(answer_requests(earth, [sure, other], policy=None, max_new_tokens=1))
    assert [row[0].scale.sigma_log10 for row in answers] == pytest.approx([heard, 1.0])


def test_documents_without_sigma_are_asked_as_before(fake_lmms_eval, fake_run):
    model = lmms(fake_run, gsd_field="gsd_m", gsd_m=7.0)
    model.task_dict["task"]["test"][2]["gsd_sigma_log10"] = 0.3  # of a GSD that it does not say: not the task's
    found = [model._scale(document, "task") for document in model.task_dict["task"]["test"]]
    assert found == [(0.3, None), (20.0, None), (7.0, None)]


def test_each_task_has_its_own_longest_answer(fake_lmms_eval, fake_run, earth):
    """All tasks come in one list; the answers of one do not grow with another's."""
    model = lmms(fake_run, gsd_field="gsd_m", max_new_tokens=6)
    found = model.generate_until([request(0, max_new_tokens=1), request(1, max_new_tokens=6)])
    expected = [
        earth.run([earth.prepare(Query(image=picture(1), questions=["Forest?"], gsd_m=m))], max_new_tokens=n)[0][0].text
        for m, n in ((0.3, 1), (20.0, 6))
    ]
    assert found == expected and len(found[0]) < len(found[1])


def test_sixteen_bits_do_not_saturate():
    deep = Image.fromarray(np.asarray(picture(1).convert("L")).astype(np.uint16) * 40)
    assert np.asarray(one_image([deep], "task")).std() > 20


def test_a_corpus_becomes_a_task(fake_corpus, tmp_path):
    number = export_corpus(fake_corpus, tmp_path, split="test")
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == number > 0
    for row in rows:
        assert Image.open(tmp_path / row["image"]).size and row["question"] and row["answer"]
        assert row["gsd_m"] is None or row["gsd_m"] > 0
        assert (row["gsd_m"] is None) == (row["gsd_sigma_log10"] is None)
    with pytest.raises(ConfigError, match="no such samples"):
        export_corpus(fake_corpus, tmp_path, split="test", source="nothing")


def test_a_row_lists_the_options_and_no_row_holds_a_dialogue():
    qa = {"id": "q", "type": "scene", "family": "identification", "question": "Which?", "answer": "sea"}
    options = ("sea", "town")
    assert row_text(Question(**qa, options=options)) == "Which?\nOptions: sea | town" == with_options("Which?", options)
    assert row_text(Question(**qa)) == "Which?"
    with pytest.raises(ConfigError, match=r"dialogue.*'q'.*--source"):
        row_text(Question(**qa, turns=(("Is it wet?", "yes"),)))


@pytest.mark.parametrize("file", sorted(HARNESS.glob("*.yaml")), ids=lambda file: file.stem)
def test_task_files_name_functions_that_exist(file, tmp_path, monkeypatch):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: ("function", loader.construct_scalar(node)))
    spec = importlib.util.spec_from_file_location("rsvqa_task", HARNESS / "rsvqa_task.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = yaml.load(file.read_text(), Loader)  # a subclass of the safe loader
    names = [task["doc_to_visual"], task["process_results"], task["metric_list"][1]["aggregation"]]
    functions = [getattr(module, name.removeprefix("rsvqa_task.")) for _, name in names]
    assert (
        task["doc_to_visual"][1].endswith(task["task"][-2:])
        and task["task"][-2:] in task["dataset_kwargs"]["data_files"]["test"]
    )
    right = functions[1]({"answer": "Yes", "type": "presence"}, [" yes "])
    wrong = functions[1]({"answer": "3", "type": "count"}, ["4"])
    assert (right["overall_accuracy"], wrong["overall_accuracy"]) == (1.0, 0.0)
    rows = [right["average_accuracy"]] * 3 + [wrong["average_accuracy"]]
    assert functions[2](rows) == 0.5  # of types, where three quarters of the questions are right
