"""`scaleearth predict`: generated answers to the predict splits, one row a question, and nothing else."""

from pathlib import Path

import pytest
from fakes.runs import UNDRAWN, arguments, fit

from scaleearth_pl.core.run_files import PREDICTIONS, SSE_U
from scaleearth_pl.evaluation.predictions import read_predictions, read_sse_u
from scaleearth_pl.training.command import run_lightning


@pytest.mark.slow
def test_every_question_of_the_split_is_answered_in_words(fake_corpus: Path, tmp_path: Path, monkeypatch) -> None:
    trained = fit("stage2", fake_corpus, tmp_path, *UNDRAWN, steps=1)
    adapter = ("--model.init_args.adapter", str(trained.run_folder / "adapter"))
    monkeypatch.setenv("SCALEEARTH_VERSION", "answers")
    no_training_split = ("--data.train_splits", "[absent]", "--model.init_args.backbone.checkpointing", "auto")
    splits = ("--data.predict_splits", "[val]", *no_training_split)
    words = arguments("stage2", fake_corpus, tmp_path, *UNDRAWN, *adapter, *splits)
    cli = run_lightning(["predict", *words[1:]])
    rows = read_predictions(cli.run_folder / PREDICTIONS)
    assert cli.run_folder.name == "answers"
    assert len(rows) == int(cli.datamodule.split_plan("predict").lengths.n_questions_R.sum())
    assert all(row.prediction is not None for row in rows)
    assert [row.prediction == row.answer for row in rows] == [row.correct for row in rows]
    assert len(read_sse_u(cli.run_folder / SSE_U)) == len({row.image_id for row in rows})
    assert (tmp_path / "stage2/latest").resolve() == trained.run_folder.resolve(), "only a fit is the newest run"
    assert cli.trainer.predict_loop.predictions == []
