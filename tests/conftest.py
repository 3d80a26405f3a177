"""Shared by all tests: offline libraries, one thread, run-time shape checks, a small fake corpus."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # bench
sys.path.insert(0, str(Path(__file__).parent))  # fakes

from jaxtyping import install_import_hook

gc.disable()  # until all is imported (`pytest_collection`): nothing of that will be garbage
# Where tensors are. Not core.sample: its own errors for wrong types are what tests look at.
install_import_hook(
    ["scaleearth_pl.core.batch", "scaleearth_pl.core.metrics", "scaleearth_pl.model"], "typecheck.checked"
)

import pytest  # noqa: E402 (the hook must come first)
import torch  # noqa: E402
from fakes.corpus import make_fake_corpus  # noqa: E402
from typecheck import sparingly  # noqa: E402

from scaleearth_pl.model.backbone import import_bitsandbytes  # noqa: E402
from scaleearth_pl.model.gated_lora import GatedLoRALinear, LoRAWeight  # noqa: E402

torch.set_num_threads(1)
import_bitsandbytes()
for owner, name in ((GatedLoRALinear, "forward"), (LoRAWeight, "forward"), (LoRAWeight, "add_to")):
    setattr(owner, name, sparingly(getattr(owner, name)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Puts what was imported and collected, millions of objects, out of the garbage collector's sight."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def fake_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training images (four of each tier) and four each of val and test; do not write into it."""
    return make_fake_corpus(tmp_path_factory.mktemp("fake") / "corpus")
