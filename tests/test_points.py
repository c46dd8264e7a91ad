"""The grid and the points."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip2sam.errors import ConfigError
from clip2sam.points import pixel_indices, point_prompts, pool_grid, select_points


def test_at_a_factor_of_two_area_and_bilinear_are_the_same():
    maps = torch.randn(2, 3, 14, 14)
    torch.testing.assert_close(pool_grid(maps, 7), pool_grid(maps, "half"))


def test_area_pooling_misses_no_cell():
    maps = torch.zeros(1, 1, 32, 32)
    maps[0, 0, 13, 13] = 1.0
    assert pool_grid(maps, 7).max() == 1  # scaled by its own peak, which is found
    bilinear = F.interpolate(maps, (7, 7), mode="bilinear", align_corners=False)
    assert bilinear.max() == 0  # what the published resizing sees of it


def test_a_constant_or_broken_map_gives_no_points():
    maps = torch.zeros(1, 3, 14, 14)
    maps[0, 1, 3, 3] = torch.nan
    maps[0, 2, 5, 5] = 1.0
    coords, labels = select_points(pool_grid(maps), ((70, 70),))
    prompts = point_prompts(coords, labels, torch.ones(1, 3, dtype=torch.bool), ((70, 70),))
    assert prompts.label_index.tolist() == [2]
    assert (labels[0, :2] == -1).all()


def test_points_lie_in_the_middle_of_their_cells():
    grid = torch.zeros(1, 1, 2, 2)
    grid[0, 0, 1, 0], grid[0, 0, 0, 1] = 1.0, -1.0
    coords, labels = select_points(pool_grid(grid, 2), ((100, 200),))
    found = zip(coords[0, 0].tolist(), labels[0, 0].tolist(), strict=True)
    assert [(xy, kind) for xy, kind in found if kind >= 0] == [
        ([50.0, 75.0], 1),
        ([150.0, 25.0], 0),
    ]


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(2, 9),
    threshold=st.floats(0.05, 1.0),
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    seed=st.integers(0, 10**6),
)
def test_selection_follows_its_rule(side, threshold, height, width, seed):
    values = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed)).float()
    grid = (values / values.max()).reshape(1, 1, side, side)
    coords, labels = select_points(grid, ((height, width),), threshold)
    coords, labels = coords[0], labels[0]
    n = min(int((grid >= threshold).sum()), side * side // 2)
    assert int((labels == 1).sum()) == int((labels == 0).sum()) == n
    cells = (coords[0] / torch.tensor([width / side, height / side])).floor().long()
    taken = grid[0, 0, cells[:, 1], cells[:, 0]]
    ranked = values.sort().values / values.max()
    torch.testing.assert_close(taken[labels[0] == 1], ranked[-n:])
    torch.testing.assert_close(taken[labels[0] == 0], ranked[:n])
    indices = pixel_indices(coords)
    assert (indices >= 0).all()
    assert (indices < torch.tensor([width, height])).all()


def test_caps_keep_the_best_of_each_kind():
    grid = torch.arange(16.0).reshape(1, 1, 4, 4) / 15
    coords, labels = select_points(grid, ((4, 4),), threshold=0.5, max_positive=2, max_negative=1)
    kept = {p: (coords[labels == p] - 0.5).tolist() for p in (1, 0)}
    assert kept == {1: [[2.0, 3.0], [3.0, 3.0]], 0: [[0.0, 0.0]]}
    _, none = select_points(grid, ((4, 4),), max_negative=0)
    assert (none != 0).all()


def test_prompts_are_of_present_labels_image_by_image():
    sizes = ((50, 60), (70, 80), (9, 9))
    coords, labels = select_points(pool_grid(torch.randn(3, 4, 14, 14)), sizes)
    keep = torch.tensor([[True, False, False, True], [False] * 4, [False, True, True, True]])
    prompts = point_prompts(coords, labels, keep, sizes)
    assert prompts.label_index.tolist() == [0, 3, 1, 2, 3]
    assert prompts.counts == (2, 0, 3)
    assert prompts.image_index.tolist() == [0, 0, 2, 2, 2]
    torch.testing.assert_close(prompts.coords, coords[[0, 0, 2, 2, 2], [0, 3, 1, 2, 3]])
    assert prompts.sizes == sizes


def test_images_of_a_batch_have_their_own_sizes():
    grids = pool_grid(torch.randn(1, 2, 14, 14)).expand(2, -1, -1, -1)
    coords, labels = select_points(grids, ((100, 200), (30, 40)))
    torch.testing.assert_close(coords[0] * torch.tensor([40 / 200, 30 / 100]), coords[1])
    assert torch.equal(labels[0], labels[1])


def test_the_published_grid_of_a_map_that_is_no_square():
    assert pool_grid(torch.randn(1, 2, 4, 16), "half").shape == (1, 2, 2, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: select_points(g, ((5, 5),), threshold=0.0), "at most 1, but got 0"),
        (lambda g: select_points(g, ((5, 5),), max_negative=-1), "max_negative must be 0 or more"),
        (lambda g: pool_grid(g, 1), "2 cells a side or more, but got 1"),
        (lambda g: pool_grid(g[..., :2, :2], "half"), "2 cells a side or more, but got 1"),
        (lambda g: pool_grid(g, 5), "5 x 5 cells is finer than CLIP's map of 4 x 4; use a grid of"),
        (lambda g: pool_grid(g[..., :3], 4), "4 x 4 cells is finer than CLIP's map of 4 x 3; use"),
    ],
)
def test_settings_out_of_range_say_so(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.randn(1, 1, 4, 4))
