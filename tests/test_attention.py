"""The ways to compute attention agree, the fastest is measured once, and the encoder compiles in one piece."""

import json
import logging
import math
import subprocess
import sys

import pytest
import torch

from clip2sam.kernels.attention import attend
from clip2sam.kernels.relative import MASK_BYTES, WAYS, Attention, fastest, measure
from clip2sam.kernels import relative as attention
from clip2sam.sam.encoder import encode_image
from tests.models import small_sam

SHAPE = (2, 3, 5, 8)
"""Batch, heads, side, channels a head."""


def attention_input() -> list[torch.Tensor]:
    batch, heads, side, dim = SHAPE
    qkv = [torch.randn(batch, heads, side**2, dim) for _ in range(3)]
    return [*qkv, *(torch.randn(batch, heads, side, side, side) for _ in range(2))]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask_bytes", [1, 2**26])
def test_every_way_is_the_formula(monkeypatch, way, mask_bytes):
    monkeypatch.setitem(MASK_BYTES, "cpu", mask_bytes)
    q, k, v, down, across = attention_input()
    positions = (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)
    expected = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + positions).softmax(-1) @ v
    torch.testing.assert_close(WAYS[way](q, k, v, down, across), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_the_encoder_is_the_official_one_in_every_way(way):
    """Windows that stick out, biases that aren't zero, relative positions that matter."""
    encoder = small_sam().image_encoder
    for block in encoder.blocks:
        for parameter in (block.attn.qkv.bias, block.attn.rel_pos_h, block.attn.rel_pos_w):
            parameter.normal_()
    pixels = torch.randn(2, 3, 128, 128)
    ours = encode_image(encoder, pixels, Attention(way, way))
    torch.testing.assert_close(ours, encoder(pixels), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_stem_of_several_layers_embeds_patches_itself():
    encoder = small_sam().image_encoder
    pixels = torch.randn(1, 3, 128, 128)
    expected = encoder(pixels)
    encoder.patch_embed.proj = torch.nn.Sequential(encoder.patch_embed.proj, torch.nn.Identity())
    torch.testing.assert_close(encode_image(encoder, pixels), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bf16_is_the_official_encoder_to_its_rounding():
    encoder = small_sam().image_encoder
    pixels = torch.randn(2, 3, 128, 128)
    expected = encoder(pixels)
    half = encode_image(encoder.bfloat16(), pixels.bfloat16()).float()
    assert (half - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("scores_bytes", [1, 2**10, 2**26])
def test_part_by_part_is_the_fused_kernel(monkeypatch, scores_bytes):
    monkeypatch.setattr("clip2sam.kernels.attention.SCORES_BYTES", scores_bytes)
    q, k, v = torch.randn(3, *SHAPE[:2], SHAPE[2] ** 2, SHAPE[3])
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attend(q, k, v), expected)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)


def test_a_cpu_measures_nothing(tmp_path):
    assert fastest(
        small_sam().image_encoder.bfloat16(), 4, tmp_path / "attention.json"
    ) == Attention("masked", "masked")
    assert not any(tmp_path.iterdir())


def test_what_is_measured_has_the_encoders_shapes(monkeypatch, tmp_path):
    """On a GPU: windows that stick out over the edge, then the whole picture."""
    encoder = small_sam().image_encoder.bfloat16()
    monkeypatch.setattr(attention, "_on_gpu", lambda weight: True)
    monkeypatch.setattr(attention, "_fastest_at", lambda shape, *rest: str(shape))
    side, block = encoder.pos_embed.shape[1], encoder.blocks[0].attn
    window = next(b.window_size for b in encoder.blocks if b.window_size)
    dim = encoder.pos_embed.shape[3] // block.num_heads
    windows = 4 * math.ceil(side / window) ** 2
    expected = (windows, block.num_heads, window, dim), (4, block.num_heads, side, dim)
    assert fastest(encoder, 4, tmp_path / "attention.json") == Attention(*map(str, expected))


def test_the_fastest_is_measured_once_and_kept(monkeypatch, tmp_path, caplog):
    seconds, asked = {"masked": 3.0, "joined": 1.0, "padded": 1.5, "flex": 2.0}, []

    def measured(way, *shape_and_place):
        asked.append(way)
        return seconds[way]

    monkeypatch.setattr(attention, "measure", measured)
    kept = tmp_path / "folder" / "attention.json"
    caplog.set_level(logging.INFO, "clip2sam")
    for _ in range(2):
        assert attention._fastest_at(SHAPE, torch.bfloat16, torch.device("cpu"), kept) == "joined"
    assert asked == list(WAYS)
    assert "attention: joined for cpu, torch" in caplog.text
    assert list(json.loads(kept.read_text()).values()) == [seconds]
    assert (
        attention._fastest_at((1, *SHAPE[1:]), torch.bfloat16, torch.device("cpu"), kept)
        == "joined"
    )
    assert len(asked) == 2 * len(WAYS), "another shape is measured by itself"


def test_a_way_without_a_kernel_is_left_out(monkeypatch, tmp_path, caplog):
    def broken(*tensors):
        raise RuntimeError("no kernel for this shape")

    monkeypatch.setitem(WAYS, "masked", broken)
    monkeypatch.setitem(WAYS, "padded", broken)
    monkeypatch.setitem(WAYS, "flex", broken)
    kept = tmp_path / "attention.json"
    kept.write_text("{damaged")
    assert attention._fastest_at(SHAPE, torch.float32, torch.device("cpu"), kept) == "joined"
    assert "masked doesn't work here (RuntimeError: no kernel for this shape)" in caplog.text
    assert "can't be read" in caplog.text
    assert "no kernel" not in kept.read_text()


def test_a_measure_takes_time():
    assert 0 < measure("masked", *SHAPE, torch.float32, torch.device("cpu"), times=1) < 60


COMPILE = """
import torch
from clip2sam.kernels.relative import Attention
from clip2sam.sam.encoder import encode_image
from tests.models import small_sam
encoder, pixels = small_sam().image_encoder, torch.randn(1, 3, 128, 128)
compiled = torch.compile(encode_image, backend="aot_eager", fullgraph=True, dynamic=False)
with torch.no_grad():
    for way in ("masked", "joined", "padded"):
        ours = compiled(encoder, pixels, Attention(way, way))
        torch.testing.assert_close(ours, encoder(pixels), rtol=1e-4, atol=1e-5)
"""


def test_the_encoder_is_one_graph():
    """In a process of its own: the checks of shapes are no part of the graph."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
