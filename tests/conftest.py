"""Shared by all tests: offline libraries, one thread, run-time shape checks, a small fake corpus."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # bench
sys.path.insert(0, str(Path(__file__).parent))  # fakes

# Where tensors are. Not core.sample: its own errors for wrong types are what tests look at.
install_import_hook(
    ["scaleearth_pl.core.batch", "scaleearth_pl.core.metrics", "scaleearth_pl.model"], "typecheck.checked"
)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """What is imported stays, millions of objects: the garbage collector neither stops for it nor sees it afterwards.

    The process that only hands tests out to others imports nothing: they would wait for it.
    """
    works = hasattr(session.config, "workerinput") or session.config.getoption("dist", "no") == "no"
    if not works:
        return (yield)
    gc.disable()
    try:
        import_models()
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def import_models() -> None:
    """The model with its shape checks, which are spared where every layer passes in every pass."""
    import torch
    from typecheck import spare

    from scaleearth_pl.model import gate, gated_lora, scale_state, surgery, tree_attention, tree_kernels
    from scaleearth_pl.model.backbone import import_bitsandbytes

    torch.set_num_threads(1)
    import_bitsandbytes()
    for module in (gate, gated_lora, scale_state, surgery, tree_attention, tree_kernels):
        spare(module)


@pytest.fixture(scope="session")
def fake_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training images (four of each tier) and four each of val and test; do not write into it."""
    from fakes.corpus import make_fake_corpus

    return make_fake_corpus(tmp_path_factory.mktemp("fake") / "corpus")
