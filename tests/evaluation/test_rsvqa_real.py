"""The real tiles through import, floors and official metric: a constant model lands exactly on the majority floor."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from scaleearth_pl.data.shards import ShardIndex, ShardReader
from scaleearth_pl.evaluation.floors import compute_floors
from scaleearth_pl.evaluation.rsvqa.metric import DATASETS, official_class
from scaleearth_pl.evaluation.rsvqa.ours import score_rsvqa
from scaleearth_pl.prepare.rsvqa import RsvqaConfig, import_rsvqa

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="real tiles are not at hand")
def test_constant_answers_reach_the_majority_floor_on_real_questions(tmp_path, prediction):
    import_rsvqa(RsvqaConfig(root=REAL), tmp_path / "corpus")
    index = ShardIndex.load(tmp_path / "corpus")
    reader = ShardReader(index)
    questions = [(s, q) for row in index.rows(("test",)) for s in [reader.read_sample(int(row))] for q in s.qas]
    bins, exact = defaultdict(Counter), defaultdict(Counter)
    for s, q in questions:
        exact[s.source, q.type][q.answer] += 1
        bins[s.source, q.type][official_class(q.answer, kind=q.type, dataset=DATASETS[s.source])] += 1
    of_bin = {
        (s.source, q.type, official_class(q.answer, kind=q.type, dataset=DATASETS[s.source])): q.answer
        for s, q in questions
    }
    best = {key: of_bin[(*key, counts.most_common(1)[0][0])] for key, counts in bins.items()}
    rows = [
        prediction(
            image_id=s.image_id,
            place_id=s.place_id,
            source=s.source,
            qa_id=q.id,
            type=q.type,
            family=q.family,
            question=q.question,
            answer=q.answer,
            prediction=best[s.source, q.type],
            correct=best[s.source, q.type] == q.answer,
            gsd_m=s.gsd_m_native,
            tier=str(s.tier),
            has_scale_cue=None,
        )
        for s, q in questions
    ]
    scores = score_rsvqa(rows)
    assert [(score["source"], score["n"]) for score in scores] == [("rsvqa_lr", 501), ("rsvqa_hr", 500)]
    for score in scores:
        assert score["oa"] == pytest.approx(score["majority_oa"])
        assert score["aa"] == pytest.approx(score["majority_aa"])
    by_hand = sum(counts.most_common(1)[0][1] for counts in exact.values()) / len(questions)
    floors = compute_floors(rows, corpus_root=tmp_path / "corpus")
    assert floors.majority["overall"] == pytest.approx(by_hand)
    assert floors.question_only["overall"] > 0.5
    # Two GSDs, one per source, and each type of question but three belongs to both: little is left for the GSD to tell.
    assert abs(floors.question_gsd["overall"] - floors.question_only["overall"]) < 0.1
