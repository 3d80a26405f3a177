"""One fake run and one loaded model for all tests of serving."""

from pathlib import Path

import pytest
from serving_fakes import make_run

from scaleearth_pl.serving.engine import Assistant


@pytest.fixture(scope="session")
def fake_run(fake_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2 on the fake corpus, in full precision; do not write into it."""
    return make_run(tmp_path_factory.mktemp("served"), fake_corpus)


@pytest.fixture(scope="session")
def earth(fake_run: Path) -> Assistant:
    """The loaded model; do not change it."""
    return Assistant.from_pretrained(fake_run, max_new_tokens=6)
