"""A pass is bounded by what its cache holds: one long question beside many short ones is refused, or passes apart."""

import pytest
from server_fakes import chat, serving
from serving_fakes import picture

from scaleearth_pl.model import generate
from scaleearth_pl.model.pass_size import max_slots
from scaleearth_pl.serving.engine import Assistant, Query
from scaleearth_pl.serving.queueing import Batcher, BatchPolicy, Job
from scaleearth_pl.serving.stream import passes

LONG = "1234567890" * 400
"""As long as a question may be, and a token a digit."""

NEW = 24
"""The longest answer of a server that is told nothing else."""


def prepared(earth, *questions, size=(64, 64)):
    return earth.prepare(Query(image=picture(size=size), questions=questions, spoof_gsd_m=1.0))


def together(queries, max_new_tokens=NEW):
    first, *others = (query.size(max_new_tokens) for query in queries)
    return sum(others, first)


def test_a_size_counts_the_slots_that_the_cache_takes(earth, monkeypatch):
    """All but the last new token of each branch, which no other token sees."""
    taken, rectangle = [], generate._rectangle

    def counted(*args, **kwargs):
        made = rectangle(*args, **kwargs)
        taken.append(made.shape[0] * made.shape[1])
        return made

    monkeypatch.setattr(generate, "_rectangle", counted)
    queries = [prepared(earth, "Forest?", LONG[:50]), prepared(earth, "Forest?", size=(128, 64))]
    earth.run(queries, max_new_tokens=4)
    keys_and_values, n_layers = 2, earth.model.backbone.config.text_config.num_hidden_layers
    size = together(queries, 4)
    assert sum(taken) == keys_and_values * n_layers * (size.n_slots - size.n_branches)
    assert size.n_tokens == sum(query.n_tokens for query in queries)


class Standing:
    """The engine, which must not be asked."""

    def __init__(self, earth):
        self._earth = earth

    def __getattr__(self, name):
        return getattr(self._earth, name)

    def run(self, *_, **__):
        raise AssertionError("a pass that should not be")


def test_one_long_question_beside_127_short_ones_is_refused(earth):
    """Few tokens, half a million slots: 1 GiB in the tiny model, 70 GiB in the 8B one."""
    size = prepared(earth, LONG, *["a"] * 127).size(earth.max_new_tokens)
    assert size.n_tokens < earth.max_batch_tokens / 3 and size.n_slots > 500_000
    with serving(Standing(earth)) as running:
        status, _, reply = running.post(chat(None, questions=[LONG, *["a"] * 127], gsd_m=1.0))
        metrics = running.send("GET", "/metrics")[2].decode()
    text = reply["error"]["message"]
    assert status == 413 and reply["error"]["param"] == "questions"
    for number in (size.n_slots, max_slots(earth.max_batch_tokens), 128, size.longest_prompt, earth.max_new_tokens):
        assert str(number) in text
    assert "Ask the longest question apart" in text and 'status="413"} 1.0' in metrics


def test_apart_they_are_answered(earth):
    with serving(earth) as running:
        for questions in ([LONG], ["a"] * 127):
            status, _, reply = running.post(chat(None, questions=questions, gsd_m=1.0, max_tokens=1))
            assert status == 200 and len(reply["choices"]) == len(questions)


def test_what_the_request_allows_of_an_answer_counts(earth):
    """A cache keeps a place for each token of each answer; shorter answers need less of it."""
    wordy = Assistant(earth.loaded, max_new_tokens=1000)
    with serving(Standing(wordy)) as running:
        status, _, reply = running.post(chat(None, questions=["Forest?"] * 128))
        assert status == 413 and "smaller max_tokens" in reply["error"]["message"]
        assert running.post(chat(None, questions=["Forest?"] * 128, max_tokens=NEW))[0] == 500  # it was asked


def test_ordinary_requests_are_far_from_the_bound(earth):
    """A full request of short questions, and a full batch of requests about the smallest and the largest images."""
    full = prepared(earth, *["Are there roads of 3 metres?"] * 128)
    assert full.size(NEW).n_slots < max_slots(earth.max_batch_tokens) / 5
    batch = [prepared(earth, "Forest?", LONG[:100], size=size) for size in ((32, 32), (128, 128)) * 16]
    assert together(batch).fits(earth.max_batch_tokens)
    assert len(list(passes(batch, earth.max_batch_tokens, NEW))) == 1


def test_passes_of_like_questions_end_by_their_tokens(earth):
    """Of the shortest questions, to the last token of the budget: the bound on slots takes nothing away."""
    queries = [prepared(earth, *["Forest?"] * 128)] * 16
    budget = together(queries).n_tokens
    assert together(queries).fits(budget)
    assert [len(part) for _, part in passes(queries * 2, budget, NEW)] == [16, 16]


def test_passes_are_cut_before_the_bound(earth):
    """Each alone is ordinary; one long question and twenty requests of short ones together are not."""
    queries = [prepared(earth, "a", "b"), prepared(earth, LONG), *[prepared(earth, "a", "b")] * 20]
    budget = 2 * queries[1].n_tokens
    assert sum(query.n_tokens for query in queries) < budget and not together(queries).fits(budget)
    parts = list(passes(queries, budget, NEW))
    assert len(parts) > 1 and [query for _, part in parts for query in part] == queries
    assert [first for first, _ in parts] == [sum(len(p) for _, p in parts[:i]) for i in range(len(parts))]
    assert all(together(part).fits(budget) for _, part in parts)


def test_one_query_over_the_bound_is_a_pass_of_its_own(earth):
    """Who asks on an own machine is answered; a server has refused it before."""
    query, short = prepared(earth, LONG, *["a"] * 127), prepared(earth, "a")
    parts = [part for _, part in passes([short, query, short], earth.max_batch_tokens, NEW)]
    assert parts == [[short], [query], [short]]


def test_a_batch_is_closed_before_the_bound(earth):
    long, short = prepared(earth, LONG), prepared(earth, "a", "b")
    batcher = Batcher(earth, BatchPolicy(), lambda report: None)
    for query in (long, *[short] * 30):
        batcher.submit(Job(prepared=query, max_new_tokens=NEW))
    batcher.submit(Job(prepared=short, max_new_tokens=5))
    batcher.stop()  # after the jobs: an empty batch comes last
    batches = list(iter(batcher._collect, []))
    assert len(batches) == 2 and sum(map(len, batches)) == 32
    assert all(together([job.prepared for job in batch]).fits(earth.max_batch_tokens) for batch in batches)
    assert batches[0][0].prepared is long and len(batches[0]) > 2


@pytest.mark.parametrize("longer", [NEW, 2000])
def test_the_longest_answer_of_a_batch_is_that_of_all(earth, longer):
    """The pass runs to it, so it counts for every branch."""
    short, batcher = prepared(earth, *["a"] * 20), Batcher(earth, BatchPolicy(), lambda report: None)
    for limit in (NEW, NEW, longer):
        batcher.submit(Job(prepared=short, max_new_tokens=limit))
    assert len(batcher._collect()) == (3 if longer == NEW else 2)
