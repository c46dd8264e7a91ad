"""Many prompts at once give what a loop over SamPredictor gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from clip2sam.candidates import agreement
from clip2sam.coco.rle import encode_mask
from clip2sam.data.images import Image
from clip2sam.kernels.device import MASK_PIXELS_PER_BATCH, PROMPTS_PER_BATCH
from clip2sam.sam import PromptSAM
from clip2sam.sam.rle import encode_changes, encode_masks
from clip2sam.types import Prompts
from tests.models import small_sam


def noise(height, width, seed=0) -> Image:
    return Image(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), "array"
    )


def random_prompts(count, points, size, seed=0) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand(count, points, 2, generator=generator) * torch.tensor([size[1], size[0]])
    labels = torch.randint(-1, 2, (count, points), generator=generator)
    labels[:, 0] = 1
    return Prompts(coords, labels, torch.arange(count), (count,), (size,))


def embed(sam, *images):
    return sam.encode_image(sam.preprocess([sam.resize(image) for image in images]))


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("size", [(90, 131), (128, 128), (301, 64), (1, 1)])
def test_same_as_a_loop_over_the_predictor(monkeypatch, size, on_host):
    """On a CPU, and as it is done elsewhere: in batches, and without a look at values."""
    if not on_host:
        monkeypatch.setitem(PROMPTS_PER_BATCH, "cpu", 7)
        for file in ("sam.cutter", "sam.decoder", "sam.encoder", "kernels.relative"):
            monkeypatch.setattr(f"clip2sam.{file}.on_host", lambda tensor: False)
    model = small_sam()
    sam, predictor, image = PromptSAM(model), SamPredictor(model), noise(*size)
    prompts = random_prompts(18, 12, size)  # more than one batch, every length from 1 to 12
    candidates = sam.decode(embed(sam, image), prompts)
    logits, iou = candidates.logits, candidates.predicted_iou
    predictor.set_image(image.pixels)
    for i, (coords, labels) in enumerate(zip(prompts.coords, prompts.point_labels, strict=True)):
        real = labels >= 0
        points = coords[real].floor().numpy(), labels[real].numpy()
        theirs, their_iou, their_logits = predictor.predict(*points, return_logits=True)
        torch.testing.assert_close(logits[i], torch.from_numpy(their_logits), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(iou[i].numpy(), their_iou, atol=1e-4)
        ours = torch.cat(list(sam.upscale(logits[i], size))).numpy()
        undecided = np.abs(theirs) < 1e-5  # on the very edge, where rounding decides
        np.testing.assert_array_equal(ours | undecided, (theirs > 0) | undecided)
        assert undecided.mean() < 1e-3


def test_what_is_in_padded_slots_does_not_matter():
    sam, size = PromptSAM(small_sam()), (64, 64)
    embedding, prompts = embed(sam, noise(*size)), random_prompts(3, 8, size)
    moved = torch.where(
        (prompts.point_labels == -1)[..., None], prompts.coords * 0 + 3.0, prompts.coords
    )
    assert not torch.equal(moved, prompts.coords)
    ours = sam.decode(embedding, prompts)
    other = sam.decode(embedding, replace(prompts, coords=moved))
    torch.testing.assert_close(ours.logits, other.logits)
    torch.testing.assert_close(ours.predicted_iou, other.predicted_iou)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boxed", [False, True])
def test_boxes_and_mask_inputs_are_the_predictors(boxed, masked):
    """Two images of different sizes, the first without a prompt, against SamPredictor."""
    model, size = small_sam(), (90, 131)
    sam, predictor, image = PromptSAM(model), SamPredictor(model), noise(*size)
    prompts = replace(random_prompts(5, 4, size), counts=(0, 5), sizes=((64, 64), size))
    if boxed:
        boxes = torch.tensor([[3.0, 5.0, 60.0, 70.0]]) + torch.arange(5.0)[:, None]
        prompts = replace(prompts, boxes=boxes)
    if masked:
        prompts = replace(prompts, mask_inputs=torch.randn(5, 32, 32) * 5)
    found = sam.decode(embed(sam, image), prompts)
    predictor.set_image(image.pixels)
    for i, (coords, labels) in enumerate(zip(prompts.coords, prompts.point_labels, strict=True)):
        _, their_iou, their_low = predictor.predict(
            coords[labels >= 0].floor().numpy(),
            labels[labels >= 0].numpy(),
            box=prompts.boxes[i].numpy() if boxed else None,
            mask_input=prompts.mask_inputs[i][None].numpy() if masked else None,
            return_logits=True,
        )
        torch.testing.assert_close(
            found.logits[i], torch.from_numpy(their_low), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(found.predicted_iou[i].numpy(), their_iou, atol=1e-4)


def test_no_prompt_no_mask():
    sam = PromptSAM(small_sam())
    none = sam.no_candidates()
    assert none.logits.shape == (0, 3, 32, 32)
    assert none.predicted_iou.shape == (0, 3)
    assert sum(len(m) for m in sam.upscale(none.logits[:, 0], (50, 60))) == 0


def test_a_strip_of_9000_pixels_keeps_a_row():
    sam = PromptSAM(small_sam())
    assert sam.frame_size((1, 9000)) == (1, 128)
    prompts = random_prompts(2, 4, (1, 9000))
    logits = sam.decode(embed(sam, noise(1, 9000)), prompts).logits
    assert [m.shape for m in sam.upscale(logits[:, 0], (1, 9000))] == [(2, 1, 9000)]


def test_big_masks_are_made_a_few_at_a_time(monkeypatch):
    sam = PromptSAM(small_sam())
    logits = torch.randn(5, 32, 32)
    whole = torch.cat(list(sam.upscale(logits, (100, 80))))
    monkeypatch.setitem(MASK_PIXELS_PER_BATCH, "cpu", 2 * 128 * 128)
    chunks = list(sam.upscale(logits, (100, 80)))
    assert [len(c) for c in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat(chunks), whole)


@pytest.mark.parametrize("size", [(90, 131), (128, 128), (301, 64), (20, 300)])
@pytest.mark.parametrize(
    "place",
    [(0, 4, 0, 5), (13, 17, 9, 20), (28, 32, 30, 32), (0, 32, 0, 32), (7, 8, 7, 8), (9, 9, 9, 9)],
)
def test_what_lies_beyond_a_mask_is_not_resized(size, place):
    """The same pixels as segment-anything computes, wherever the mask lies, up to the edge."""
    model = small_sam()
    logits, (top, bottom, left, right) = -torch.rand(3, 32, 32) * 5, place
    logits[:, top:bottom, left:right] = torch.randn(3, bottom - top, right - left) * 5
    sam, scale = PromptSAM(model), 128 / max(size)
    frame = tuple(max(int(side * scale + 0.5), 1) for side in size)
    expected = model.postprocess_masks(logits[None], frame, size)[0] > 0
    assert torch.equal(torch.cat(list(sam.upscale(logits, size))), expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 60)])
def test_rle_by_changes_is_pycocotools_own(size):
    masks = torch.stack(
        [
            torch.zeros(size, dtype=torch.bool),
            torch.ones(size, dtype=torch.bool),
            *(torch.rand(4, *size) > torch.tensor([0.05, 0.5, 0.95, 0.99])[:, None, None]),
        ]
    )
    assert encode_changes(masks) == encode_masks(masks) == [encode_mask(m) for m in masks.numpy()]
    assert encode_changes(masks[:1]) == encode_masks(masks[:1])
    assert encode_changes(masks[:0]) == []


def test_agreement_prefers_the_mask_under_the_heat():
    heat = torch.zeros(1, 4, 4)
    heat[0, :2, :2] = 5.0
    coverage = torch.zeros(1, 3, 4, 4)
    coverage[0, 0, :2, :2] = 1.0  # the very place
    coverage[0, 1, 2:, 2:] = 1.0  # elsewhere
    coverage[0, 2] = 1.0  # everything
    torch.testing.assert_close(agreement(coverage, heat), torch.tensor([[1.0, 0.0, 0.25]]))


def test_coverage_is_counted_in_the_image_not_in_the_padding():
    sam = PromptSAM(small_sam())
    logits = torch.full((1, 3, 32, 32), -1.0)
    logits[..., :16, :16] = 1.0  # a 64 x 128 image fills the upper half of the frame
    covered = sam.coverage(logits, (64, 128), (2, 2))
    torch.testing.assert_close(covered[0, 0], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
