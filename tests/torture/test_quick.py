"""The quick part of `make torture`: mutated shards, one kill inside an accumulation, one rank that fails."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import cases_process  # noqa: F401 (each registers its cases)
import cases_resume  # noqa: F401
import cases_shards  # noqa: F401
from fakes.corpus import make_fake_corpus
from fakes.runs import shallow_hf
from harness import CASES, Bench, make_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("torture")
    (root / "hf").symlink_to(shallow_hf(make_fake_corpus(root / "corpus")))
    (root / "prepared").touch()
    bench = make_bench(root, full=False)
    yield bench
    bench.zygote.close()


@pytest.mark.slow
@pytest.mark.parametrize("id", ["D1", "D2", "D4", "R3", "P2"])
def test_case(bench: Bench, id: str) -> None:
    _, function = CASES[id]
    assert function(bench)
