"""A cutter of one's own: what the pipeline needs of it, and where its masks are."""

import numpy as np
import pytest
import torch
from torch import nn

import clip2sam
from clip2sam.data.images import load_image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError
from clip2sam.labelling.engine import SegmenterEngine
from clip2sam.sam import Cutter
from clip2sam.types import Candidates, Prompts

SIDE, RADIUS = 64, 8


class Discs(Cutter):
    """Cuts a disc around each prompt's first point. It stretches images to its square, and what it
    keeps of an image is two tensors of different shapes."""

    def __init__(self) -> None:
        self._model = nn.Linear(2, 2)
        self.seen: list[tuple[tuple[int, ...], ...]] = []

    @property
    def model(self):
        return self._model

    @property
    def dtype(self):
        return self._model.weight.dtype

    @property
    def input_side(self):
        return SIDE

    def frame_size(self, size):
        return SIDE, SIDE

    def preprocess(self, frames):
        return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in frames])

    def encode_image(self, pixels):
        return pixels.mean(dim=1), pixels.mean(dim=(2, 3))

    def decode(self, embeddings, prompts):
        self.seen.append(tuple(tuple(level.shape) for level in embeddings))
        if not len(prompts.coords):
            return self.no_candidates()
        at = prompts.coords[:, 0] * self.frame_scale(prompts.sizes)[prompts.image_index] / 4
        cells = torch.arange(SIDE // 4) + 0.5
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        away = ((torch.stack([x, y], -1) - at[:, None, None]) ** 2).sum(dim=-1).sqrt()
        logits = (RADIUS / 4 - away)[:, None].expand(-1, 3, -1, -1)
        return Candidates(logits, torch.full(logits.shape[:2], 0.9))


def test_its_masks_are_at_their_place_in_an_image_that_it_sees_stretched():
    cutter, size = Discs(), (96, 320)
    prompts = Prompts(
        torch.tensor([[[240.0, 30.0]]]),
        torch.ones(1, 1, dtype=torch.int),
        torch.tensor([0]),
        (1,),
        (size,),
    )
    logits = cutter.decode(cutter.encode_image(torch.zeros(1, 3, SIDE, SIDE)), prompts).logits[0]
    mask = torch.cat(list(cutter.upscale(logits, size)))[0].numpy()
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    ellipse = ((x - 240) * SIDE / 320) ** 2 + ((y - 30) * SIDE / 96) ** 2 < RADIUS**2
    assert (mask & ellipse).sum() / (mask | ellipse).sum() > 0.9
    box = cutter.boxes(logits, size)[0].numpy()
    np.testing.assert_allclose(box, [200, 18, 280, 42], atol=20)
    covered = cutter.coverage(logits, size, (1, 4))[0, 0].numpy()
    assert covered.argmax() in (2, 3)
    assert covered[0] == 0


def test_the_pipeline_takes_it_in_the_place_of_sam():
    cutter = Discs()
    segmenter = clip2sam.load("tiny", sam=cutter, device="cpu")
    assert segmenter.sam is cutter
    red = np.full((60, 90, 3), 255, np.uint8)
    red[10:40, 50:80] = (220, 30, 30)
    images = [load_image(np.full((60, 90, 3), 255, np.uint8)), load_image(red)]
    blank, found = segmenter.segment(segmenter.encode(images), as_label_set(["red square"]))
    assert not blank.annotations
    assert {(a.label, len(a.points)) for a in found.annotations} == {("red square", 1)}
    assert cutter.seen == [((1, SIDE, SIDE), (1, 3))], "only the image with a prompt"


def test_its_weights_and_its_dtype_are_in_a_runs_fingerprint():
    cutter = Discs()
    segmenter, labels = clip2sam.load("tiny", sam=cutter, device="cpu"), as_label_set(["square"])
    before = SegmenterEngine(segmenter, labels).fingerprint()
    assert before["precision"] == "float32"
    cutter.model.half()
    after = SegmenterEngine(segmenter, labels).fingerprint()
    assert after["precision"] == "float16"
    assert before["weights"]["sam"] != after["weights"]["sam"]
    assert before["weights"]["clip"] == after["weights"]["clip"]


def test_what_is_no_cutter_is_refused():
    with pytest.raises(ConfigError, match=r"sam must be a model .* but got 'vit_h'"):
        clip2sam.load("tiny", sam="vit_h")
