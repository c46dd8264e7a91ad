"""The best agreement with a map is that of a mask which fits it, and a true mask is near it."""

from dataclasses import replace

import pytest
import torch

import clip2sam
from clip2sam.analysis.agreement import best_agreement
from clip2sam.analysis.explain import explain
from clip2sam.candidates import agreement
from clip2sam.instances import fine_maps
from clip2sam.pipeline import Segmenter
from clip2sam.scoring import contrast
from clip2sam.types import Prompts, SimilarityMaps
from tests.labelling_fakes import small_segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return small_segmenter()


def hill(rows: int, row: float, col: float, width: float) -> torch.Tensor:
    """A smooth hill of height 1, far wider than an object's edge is."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(rows) + 0.5, indexing="ij")
    return (-((y - row) ** 2 + (x - col) ** 2) / (2 * width**2)).exp()


def maps_of(raw: torch.Tensor) -> SimilarityMaps:
    labels = clip2sam.as_label_set(["cat"])
    some = torch.ones(1, 1)
    return SimilarityMaps(raw[None, None], some, some < 0, some.bool(), labels, ((100, 100),))


def prompt_at(x: int, y: int) -> Prompts:
    """A point in an image of 100 x 100 pixels."""
    where, one = torch.tensor([[[float(x), float(y)]]]), torch.ones(1, 1, dtype=torch.long)
    return Prompts(where, one, torch.zeros(1, dtype=torch.long), (1,), ((100, 100),))


def test_of_one_prompt_a_label_it_is_the_best_soft_iou_of_any_whole_cells(segmenter):
    """Of a map of few cells every mask can be tried."""
    raw = torch.tensor([[0.9, 0.8, 0.1], [0.6, 0.3, 0.0]])
    every = [[(n >> i) & 1 for i in range(6)] for n in range(1, 64)]
    masks = torch.tensor(every, dtype=torch.float32).view(1, 63, 2, 3)
    highest = float(agreement(masks, raw[None]).max())
    one = segmenter.with_config(prompts="label")
    assert best_agreement(one, maps_of(raw), prompt_at(1, 1), 0) == pytest.approx(highest)
    assert highest < 0.9


def test_of_one_prompt_an_object_it_is_that_of_the_hill_around_its_point(segmenter):
    """A higher hill elsewhere doesn't count."""
    low, high = 0.7 * hill(64, 16, 16, 4), hill(64, 48, 48, 4)
    maps = maps_of(low + high)
    mine = best_agreement(segmenter, maps, prompt_at(25, 25), 0)
    other = best_agreement(segmenter, maps, prompt_at(75, 75), 0)
    fine, heat = fine_maps(low[None])[0], fine_maps((low + high)[None])
    masks = torch.stack([fine > level for level in torch.linspace(0.5, 0.7, 40)])[None].float()
    reached = float(contrast(masks, heat).agreement.max())
    assert mine == pytest.approx(reached, abs=0.02)
    assert other > mine + 0.05


def test_of_a_proposal_it_is_that_of_a_mask_that_fits_its_box(segmenter):
    prompts = replace(prompt_at(9, 9), scores=torch.tensor([0.3]), boxes=torch.zeros(1, 4))
    best = best_agreement(segmenter, maps_of(hill(8, 4, 4, 2)), prompts, 0)
    assert best == pytest.approx(0.75), "0.3 / (0.3 + 0.1), see clip2sam.scoring"


@pytest.mark.parametrize("prompts", ["label", "object"])
def test_a_true_mask_reads_as_good(prompts):
    """On drawn scenes with their truth: the agreement itself may be low, its share of the best is
    not."""
    from clip2sam.tiny.demo import demo_scenes

    tiny = clip2sam.load("tiny", device="cpu").with_config(prompts=prompts)
    scene = demo_scenes()[2]
    explained = explain(tiny, scene.pixels, ["cyan arrow", "yellow moon"], "yellow moon")
    kept = next(one for one in explained.candidates if one.kept)
    assert kept.of_best > 0.7
    assert kept.of_best >= kept.agreement
