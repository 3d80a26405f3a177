"""The shape checks of the other tests: they are in force, and spared only where `conftest` says so."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor
from typecheck import checked, sparingly

from scaleearth_pl.model.losses import gaussian_nll


def test_a_wrong_shape_is_an_error_in_the_model() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        gaussian_nll(torch.zeros(3), torch.zeros(4), torch.zeros(3), torch.ones(3))


def test_what_every_layer_calls_is_checked_now_and_then() -> None:
    @jaxtyped(typechecker=checked)
    def same(x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        return x

    spared, found = sparingly(same, first=3, then=4), []
    for call in range(10):
        try:
            spared(torch.zeros(2, 3))
        except jaxtyping.TypeCheckError:
            found.append(call)
    assert found == [0, 1, 2, 4, 8]
