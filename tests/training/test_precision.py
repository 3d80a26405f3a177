"""`bf16-mixed` is a matter of the forward: what computes in float32 there has a float32 gradient."""

from pathlib import Path

import pytest
from fakes.mixed import Compared
from fakes.runs import UNDRAWN, fit


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_backward_is_not_cast_again(fake_corpus: Path, tmp_path: Path, checkpointing: str) -> None:
    """Gradients of one step are those of the same forward, differentiated outside of autocast; inside, they are not.

    Checkpointing runs the forward again inside the backward, in its own autocast.
    """
    words = ["--trainer.callbacks", "[{class_path: fakes.mixed.Compared}]", "--trainer.enable_checkpointing", "false"]
    words += ["--data.val_splits", "[]", *UNDRAWN, "--trainer.precision", "bf16-mixed"]
    words += ["--model.init_args.backbone.quantise", "none", "--model.init_args.backbone.checkpointing", checkpointing]
    words += ["--model.init_args.nll_warmup_share", "0", "--model.init_args.optim.clip_norm", "1.0e9"]
    run = fit("stage2", fake_corpus, tmp_path, *words, steps=1)
    (compared,) = (c for c in run.trainer.callbacks if isinstance(c, Compared))
    outside, inside, found = compared.outside, compared.inside, compared.found
    assert found.keys() == outside.keys()
    assert all(gradient.equal(outside[name]) for name, gradient in found.items())
    for group in ("thresholds", "gsd_head"):
        names = [name for name in found if group in name]
        assert any(bool(found[name].any()) for name in names)
        assert not all(found[name].equal(inside[name]) for name in names), group
