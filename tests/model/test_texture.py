"""Texture of patches: layout, scales, and that it tells a near ground from a far one."""

from pathlib import Path

import pytest
import torch
from fakes.corpus import make_fake_corpus
from fakes.runs import make_data, tiny_model
from torch import Tensor

from scaleearth_pl.model.gsd_head import GsdHead, GsdHeadConfig
from scaleearth_pl.model.scaleearth import feature_dims
from scaleearth_pl.model.texture import patch_texture, texture_width

SIDE = 16


def patches(image_3YX: Tensor) -> Tensor:
    """One image as the processor hands it over: [P, 3 * 2 frames * 16 * 16]."""
    cells = image_3YX.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4)
    return cells[:, :, :, None].expand(-1, -1, -1, 2, -1, -1).reshape(-1, 6 * SIDE * SIDE)


def energies(x_PK: Tensor) -> Tensor:
    """Log energies [P, scales, (across, down), colours]."""
    return x_PK[:, 3:].unflatten(1, (-1, 2, 3))


@pytest.mark.parametrize(("patch_size", "width"), [(16, 27), (14, 21), (8, 21)])
def test_width_is_what_comes_out(patch_size: int, width: int) -> None:
    assert patch_texture(torch.randn(5, 6 * patch_size**2), patch_size).shape == (5, width)
    assert texture_width(patch_size) == width


def test_an_even_patch_is_its_colour_and_the_floor() -> None:
    image = torch.tensor([0.5, -0.25, 0.25])[:, None, None].expand(3, SIDE, SIDE)
    x_PK = patch_texture(patches(image), SIDE)
    assert torch.allclose(x_PK[0, :3], torch.tensor([1 / 6, 0.75, 0.5]))
    assert torch.allclose(energies(x_PK), torch.full((1, 4, 2, 3), (-11.5129 + 5) / 2), atol=1e-3)


def test_stripes_show_across_at_their_own_step_and_nowhere_else() -> None:
    column = torch.tensor([-1.0, -1.0, 1.0, 1.0]).repeat(4)  # stripes two pixels wide: most energy at a step of 2
    e = energies(patch_texture(patches(column.expand(3, SIDE, SIDE)), SIDE))[0]
    assert e[:, 0, 0].argmax() == 1
    assert torch.allclose(e[:, 1], e[:, 1].min().expand(4, 3)), "nothing changes downwards"
    assert torch.allclose(e[:, 0, 1:], e[:, 1].min().expand(4, 2)), "grey has no colour differences"
    assert torch.allclose(e[2:, 0, 0], e[:, 1].min().expand(2)), "averaged away at steps of 4 and 8"


def test_a_ground_seen_from_farther_away_moves_its_energy_to_finer_steps() -> None:
    fine = torch.rand(3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near = fine.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : 8 * SIDE, : 8 * SIDE]
    slope = [
        float((e[:, 0] - e[:, 3]).mean()) for e in (energies(patch_texture(patches(x), SIDE)) for x in (near, fine))
    ]
    assert slope[0] < 0 < slope[1]


def test_it_keeps_float32_under_autocast() -> None:
    x_PD = torch.randn(4, 6 * SIDE * SIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert patch_texture(x_PD, SIDE).equal(patch_texture(x_PD, SIDE).float())
        inside = patch_texture(x_PD, SIDE)
    assert inside.equal(patch_texture(x_PD, SIDE))


def test_the_model_feeds_it_to_its_head_image_by_image(tmp_path: Path) -> None:
    corpus = make_fake_corpus(tmp_path / "corpus", 4, n_questions=2, n_val=1, n_test=1)
    batch = make_data(corpus, global_batch_tokens=10**6, micro_token_budget=10**6).step_batch(0).micro[0]
    model = tiny_model(corpus)
    torch.manual_seed(0)
    model.gsd_head = GsdHead(GsdHeadConfig(hidden=16, texture=True), feature_dims(model.backbone, texture=True))
    out = model(batch)
    assert out.mu_G is not None
    features = model.encode(batch)
    last = batch.tree_of_image_I == batch.tree_of_image_I[-1]
    altered = batch.pixel_values_PD.clone()
    altered[-int(batch.image_grid_I3[-1].prod()) :] += torch.randn_like(altered[-int(batch.image_grid_I3[-1].prod()) :])
    mu_G, _ = model.read_gsd(features, type(batch)(**{**vars(batch), "pixel_values_PD": altered}))
    moved_G = (mu_G - out.mu_G).abs() > 1e-4
    assert moved_G.nonzero()[:, 0].tolist() == batch.tree_of_image_I[last].unique().tolist()
