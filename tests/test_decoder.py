"""SAM's mask decoder for prompts of several images: each prompt as if it were alone."""

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from clip2sam.sam.decoder import decode
from clip2sam.sam.prompts import embed_points
from tests.models import small_sam

OWNERS = torch.tensor([0, 2, 2, 1, 0, 2])
"""The image of each prompt, out of order."""


def prompts() -> tuple[Tensor, Tensor]:
    """Points (x, y) in SAM's frame and their labels, with padding of all lengths but the whole."""
    labels = torch.randint(0, 2, (len(OWNERS), 5))
    labels[torch.arange(5) > torch.arange(len(OWNERS))[:, None]] = -1
    return torch.rand(len(OWNERS), 5, 2) * 128, labels


def run(sam, images, coords, labels, owners, batch_size):
    encoder = sam.prompt_encoder
    return decode(
        sam.mask_decoder,
        images,
        encoder.get_dense_pe()[0],
        encoder.no_mask_embed.weight[0],
        embed_points(encoder, coords, labels),
        F.pad(labels != -1, (0, 1), value=True),
        owners,
        batch_size,
    )


@torch.no_grad()
@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_each_prompt_sees_its_own_image_and_is_what_sams_own_decoder_makes(
    monkeypatch, batch_size, on_host
):
    monkeypatch.setattr("clip2sam.sam.decoder.on_host", lambda tensor: on_host)
    sam, images, (coords, labels) = small_sam(), torch.randn(3, 32, 8, 8), prompts()
    logits, iou = run(sam, images, coords, labels, OWNERS, batch_size)
    for i, owner in enumerate(OWNERS):
        real = labels[i] >= 0
        sparse, dense = sam.prompt_encoder(
            (coords[i, real][None], labels[i, real][None]), None, None
        )
        theirs, their_iou = sam.mask_decoder(
            images[owner][None], sam.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
        torch.testing.assert_close(logits[i], theirs[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(iou[i], their_iou[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_last_digits_do_not_depend_on_what_else_is_decoded(monkeypatch, batch_size):
    """Prompts of two of three images, with and without those of the third. Batches are always full,
    so that the same kernels run."""
    monkeypatch.setattr("clip2sam.sam.decoder.on_host", lambda tensor: False)
    sizes: set[int] = set()
    sam, images, (coords, labels) = small_sam(), torch.randn(3, 32, 8, 8), prompts()
    some = images[[0, 2]]
    sam.mask_decoder.iou_prediction_head.register_forward_hook(
        lambda module, args, output: sizes.add(len(output))
    )
    of_both = OWNERS != 1
    everything = run(sam, images, coords, labels, OWNERS, batch_size)
    fewer = run(sam, some, coords[of_both], labels[of_both], OWNERS[of_both] // 2, batch_size)
    for all_of, some_of in zip(everything, fewer, strict=True):
        assert torch.equal(all_of[of_both], some_of)
    assert sizes == {batch_size}


def test_the_last_digits_of_an_embedded_point_do_not_depend_on_other_points():
    """At SAM's own number of channels: with few, a matrix product happens to give the same."""
    encoder = PromptEncoder(256, (64, 64), (1024, 1024), 16).eval()
    coords = torch.rand(60, 3, 2, generator=torch.Generator().manual_seed(0)) * 1024
    labels = torch.ones(60, 3, dtype=torch.int64)
    with torch.no_grad():
        together = embed_points(encoder, coords, labels)
        for rows in (slice(0, 1), slice(3, 5), slice(20, 37)):
            alone = embed_points(encoder, coords[rows, :1], labels[rows, :1])
            assert torch.equal(alone[:, :1], together[rows, :1])
        positions = encoder.pe_layer.forward_with_coords(coords + 0.5, (1024, 1024))
        points = positions + encoder.point_embeddings[1].weight
    torch.testing.assert_close(together[:, :3], points, rtol=0, atol=1e-5)
