"""The attention of SAM's image encoder: every implementation is the definition, the fastest is
measured once, and the encoder compiles in one piece."""

import json
import logging
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip2sam.kernels import relative
from clip2sam.kernels.attention import attend
from clip2sam.kernels.device import MASK_BYTES
from clip2sam.kernels.relative import (
    IMPLEMENTATIONS,
    MASKED,
    AttentionChoice,
    attention_shapes,
    fastest,
    fastest_at,
    measure,
)
from clip2sam.sam.encoder import encode_image
from tests.models import small_sam

BATCH, HEADS, ROWS, COLS, DIM = 2, 3, 4, 7, 8
SHAPE = (BATCH, HEADS, 5, DIM)
"""Batch, heads, side, channels a head."""
CPU = torch.device("cpu")

eager_flex = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile:UserWarning"
)


def attention_input(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v, rel_h and rel_w of a grid that is not square."""
    qkv = [torch.randn(BATCH, HEADS, ROWS * COLS, DIM) for _ in range(3)]
    rel = [torch.randn(BATCH, HEADS, ROWS, COLS, side) for side in (ROWS, COLS)]
    return [x.to(dtype) for x in (*qkv, *rel)]


def plain_scores(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Of one head: scale * q.k + rel_h[query, key row] + rel_w[query, key column], pair by pair."""
    scores = torch.empty(ROWS * COLS, ROWS * COLS, dtype=q.dtype)
    for i in range(ROWS * COLS):
        for j in range(ROWS * COLS):
            positions = rel_h[i // COLS, i % COLS, j // COLS] + rel_w[i // COLS, i % COLS, j % COLS]
            scores[i, j] = q[i] @ k[j] / math.sqrt(DIM) + positions
    return scores


@eager_flex
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask_bytes", [1, 2 * ROWS * COLS * COLS * 8, 2**26])
@pytest.mark.parametrize("vector_cols", [0, 32])
@pytest.mark.parametrize("on_host", [True, False])
def test_every_implementation_is_the_formula(monkeypatch, name, mask_bytes, vector_cols, on_host):
    """On a grid that is not square; in one piece, two rows or one row at a time; the mask made by
    a sum or by a product."""
    monkeypatch.setitem(MASK_BYTES, "cpu", mask_bytes)
    monkeypatch.setattr(relative, "VECTOR_COLS", vector_cols)
    monkeypatch.setattr(relative, "on_host", lambda tensor: on_host)
    q, k, v, rel_h, rel_w = given = attention_input()
    ours = IMPLEMENTATIONS[name](*given)
    for b, h in [(0, 0), (BATCH - 1, HEADS - 1)]:
        scores = plain_scores(q[b, h], k[b, h], rel_h[b, h], rel_w[b, h])
        torch.testing.assert_close(ours[b, h], scores.softmax(-1) @ v[b, h], rtol=1e-9, atol=1e-9)


def test_the_mask_by_a_product_is_the_mask_by_a_sum(monkeypatch):
    """To the last bit, also in bf16: each look-up has two terms that aren't zero."""
    given = attention_input(torch.bfloat16)
    by_product = relative.masked(*given)
    monkeypatch.setattr(relative, "VECTOR_COLS", 0)
    assert torch.equal(relative.masked(*given), by_product)


ROW_BYTES = COLS * ROWS * COLS * 8  # the scores of one row of queries of one head, in float64


@pytest.mark.parametrize(
    ("mask_bytes", "per_call"),
    [
        (1, (1, COLS)),  # never less than a row
        (2 * ROW_BYTES, (1, 2 * COLS)),
        (2 * ROWS * ROW_BYTES, (2, ROWS * COLS)),
        (2**26, (BATCH * HEADS, ROWS * COLS)),
    ],
)
def test_a_call_makes_the_scores_that_the_budget_holds(monkeypatch, mask_bytes, per_call):
    monkeypatch.setitem(MASK_BYTES, "cpu", mask_bytes)
    shapes, run = [], relative.attend_into
    monkeypatch.setattr(
        relative,
        "attend_into",
        lambda q, k, v, scores, out: shapes.append(scores.shape) or run(q, k, v, scores, out),
    )
    relative.masked(*attention_input())
    assert set(shapes) == {(*per_call, ROWS * COLS)}


def encoder_input(dtype: torch.dtype = torch.float64):
    """An encoder whose 8 x 8 tokens don't fill windows of 3 x 3, with biases (padded tokens' keys
    and values) and relative positions that matter, each axis with its own."""
    encoder = small_sam().image_encoder.to(dtype)
    with torch.no_grad():
        for block in encoder.blocks:
            for parameter in (block.attn.qkv.bias, block.attn.rel_pos_h, block.attn.rel_pos_w):
                parameter.normal_()
    return encoder, torch.randn(2, 3, 128, 128, dtype=dtype)


def plain_attention(attn, x: Tensor, window: int) -> Tensor:
    """Attention of one image's tokens (rows, cols, width), window by window.

    Out of the image are zero tokens, which are attended to. Relative positions use the query
    without its scale, and the table's entry for (query - key) is at side - 1 + that difference.
    """
    rows, cols, width = x.shape
    dim = width // attn.num_heads
    y, z = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    out = torch.zeros_like(x)
    for top in range(0, rows, window):
        for left in range(0, cols, window):
            tokens = x.new_zeros(window * window, width)
            inside = (top + y < rows) & (left + z < cols)
            tokens[inside] = x[(top + y)[inside], (left + z)[inside]]
            q, k, v = F.linear(tokens, attn.qkv.weight, attn.qkv.bias).split(width, dim=-1)
            heads = []
            for h in range(attn.num_heads):
                head = slice(h * dim, (h + 1) * dim)
                scores = q[:, head] @ k[:, head].T / math.sqrt(dim)
                for axis, table in ((y, attn.rel_pos_h), (z, attn.rel_pos_w)):
                    positions = table[axis[:, None] - axis[None] + window - 1]
                    scores = scores + torch.einsum("qc,qkc->qk", q[:, head], positions)
                heads.append(scores.softmax(-1) @ v[:, head])
            merged = F.linear(torch.cat(heads, dim=-1), attn.proj.weight, attn.proj.bias)
            out[(top + y)[inside], (left + z)[inside]] = merged[inside]
    return out


def plain_encoder(encoder, image: Tensor) -> Tensor:
    """SAM's image encoder written out for one image (3, side, side), up to its neck."""
    convolution = encoder.patch_embed.proj
    x = F.conv2d(image, convolution.weight, convolution.bias, convolution.stride).permute(1, 2, 0)
    x = x + encoder.pos_embed[0]
    for block in encoder.blocks:
        x = x + plain_attention(block.attn, block.norm1(x), block.window_size or len(x))
        hidden = F.gelu(block.mlp.lin1(block.norm2(x)))
        x = x + block.mlp.lin2(hidden)
    return encoder.neck(x.permute(2, 0, 1)[None])[0]


@eager_flex
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("on_host", [True, False])
@torch.no_grad()
def test_the_encoder_is_its_definition_and_the_official_one(monkeypatch, name, on_host):
    """For each implementation, as on a CPU (in chunks) and as elsewhere."""
    monkeypatch.setattr("clip2sam.kernels.relative.on_host", lambda tensor: on_host)
    monkeypatch.setattr("clip2sam.sam.encoder.on_host", lambda tensor: on_host)
    monkeypatch.setattr("clip2sam.sam.encoder.TOKENS_PER_CHUNK", 50)
    encoder, pixels = encoder_input()
    ours = encode_image(encoder, pixels, AttentionChoice(name, name))
    plain = torch.stack([plain_encoder(encoder, image) for image in pixels])
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(encoder(pixels), plain, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_windowed_and_global_attention_take_their_own_implementation(monkeypatch):
    used = []
    for name in ("masked", "joined"):
        run = IMPLEMENTATIONS[name]
        monkeypatch.setitem(
            IMPLEMENTATIONS,
            name,
            lambda q, *rest, name=name, run=run: used.append((name, q.shape[2])) or run(q, *rest),
        )
    encoder, pixels = encoder_input()
    encode_image(encoder, pixels, AttentionChoice(windowed="joined", full="masked"))
    assert used == [("joined", 3 * 3), ("masked", 8 * 8)]


@torch.no_grad()
def test_blocks_without_relative_positions_and_an_encoder_without_absolute_ones():
    encoder, pixels = encoder_input()
    encoder.pos_embed = None
    for block in encoder.blocks:
        block.attn.use_rel_pos = False
    torch.testing.assert_close(encode_image(encoder, pixels), encoder(pixels), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_stem_of_several_layers_embeds_patches_itself():
    encoder, pixels = encoder_input()
    expected = encoder(pixels)
    encoder.patch_embed.proj = torch.nn.Sequential(encoder.patch_embed.proj, torch.nn.Identity())
    torch.testing.assert_close(encode_image(encoder, pixels), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_bf16_is_the_official_encoder_to_its_rounding():
    encoder, pixels = encoder_input(torch.float32)
    expected = encoder(pixels)
    half = encode_image(encoder.bfloat16(), pixels.bfloat16()).float()
    assert (half - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("scores_bytes", [1, 5000, 2**26])
def test_part_by_part_is_the_fused_kernel(monkeypatch, scores_bytes):
    """One head, four (and the last two), or all six at a time."""
    monkeypatch.setattr("clip2sam.kernels.attention.SCORES_BYTES", scores_bytes)
    q, k, v = torch.randn(3, *SHAPE[:2], SHAPE[2] ** 2, SHAPE[3])
    expected = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attend(q, k, v), expected)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)


def on_gpu(encoder) -> SimpleNamespace:
    """The encoder's blocks, with a weight that says it is in bf16 on a GPU."""
    weight = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=torch.device("cuda"))
    return SimpleNamespace(neck=[SimpleNamespace(weight=weight)], blocks=encoder.blocks)


def test_a_cpu_measures_nothing(tmp_path):
    file = tmp_path / "attention.json"
    assert fastest(small_sam().image_encoder.bfloat16(), 4, file) == MASKED == ("masked", "masked")
    assert not file.exists()


def test_fp32_on_a_gpu_and_encoders_without_relative_positions_measure_nothing(tmp_path):
    encoder = on_gpu(small_sam().image_encoder)
    encoder.neck[0].weight.dtype = torch.float32
    assert fastest(encoder, 4, tmp_path / "attention.json") == MASKED
    encoder = on_gpu(small_sam().image_encoder)
    for block in encoder.blocks:
        block.attn.use_rel_pos = False
    assert fastest(encoder, 4, tmp_path / "attention.json") == MASKED


def test_a_gpu_measures_the_encoders_own_shapes(monkeypatch, tmp_path):
    """8 x 8 tokens: nine windows of 3 x 3 an image, then the whole image."""
    encoder, shapes = small_sam().image_encoder, []
    monkeypatch.setattr(
        relative, "fastest_at", lambda shape, *rest: shapes.append(shape) or f"{len(shapes)}."
    )
    assert fastest(on_gpu(encoder), 4, tmp_path / "attention.json") == AttentionChoice("1.", "2.")
    assert shapes == [(4 * 9, 2, 3, 16), (4, 2, 8, 16)]
    only_global = [block for block in encoder.blocks if not block.window_size]
    assert attention_shapes(only_global, 1) == ((1, 2, 8, 16), (1, 2, 8, 16))


def test_the_fastest_is_measured_once_and_kept(monkeypatch, tmp_path, caplog):
    seconds, measured = {"masked": 3.0, "joined": 1.0, "padded": 1.5, "flex": 2.0}, []
    monkeypatch.setattr(
        relative, "measure", lambda name, *rest: measured.append(name) or seconds[name]
    )
    file = tmp_path / "folder" / "attention.json"
    caplog.set_level(logging.INFO, "clip2sam")
    for _ in range(2):
        assert fastest_at(SHAPE, torch.bfloat16, CPU, file) == "joined"
    assert measured == list(IMPLEMENTATIONS)
    assert "attention: joined for cpu, torch" in caplog.text
    assert list(json.loads(file.read_text()).values()) == [seconds]
    other_shape, other_dtype = ((1, *SHAPE[1:]), torch.bfloat16), (SHAPE, torch.float16)
    for shape, dtype in (other_shape, other_dtype):
        measured.clear()
        assert fastest_at(shape, dtype, CPU, file) == "joined"
        assert measured == list(IMPLEMENTATIONS)
    assert len(json.loads(file.read_text())) == 3


def test_an_implementation_without_a_kernel_is_left_out(monkeypatch, tmp_path, caplog):
    def broken(*tensors):
        raise RuntimeError("no kernel for this shape")

    for name in ("masked", "padded", "flex"):
        monkeypatch.setitem(IMPLEMENTATIONS, name, broken)
    file = tmp_path / "attention.json"
    file.write_text("{damaged")
    assert fastest_at(SHAPE, torch.float32, CPU, file) == "joined"
    assert "masked doesn't work here (RuntimeError: no kernel for this shape)" in caplog.text
    assert "can't be read" in caplog.text
    assert "no kernel" not in file.read_text()


def test_times_that_cannot_be_written_are_measured_again(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(relative, "measure", lambda name, *rest: float(name != "flex"))
    (tmp_path / "blocked").write_text("a file where the folder should be")
    file = tmp_path / "blocked" / "attention.json"
    assert fastest_at(SHAPE, torch.bfloat16, CPU, file) == "flex"
    assert "the next run measures attention again" in caplog.text
    assert "attention.json: can't be written" in caplog.text


def test_a_measure_takes_time():
    assert 0 < measure("masked", *SHAPE, torch.float32, CPU, times=1) < 60


COMPILE = """
import torch
from clip2sam.kernels.relative import AttentionChoice
from clip2sam.sam.encoder import encode_image
from tests.models import small_sam
encoder, pixels = small_sam().image_encoder, torch.randn(1, 3, 128, 128)
compiled = torch.compile(encode_image, backend="eager", fullgraph=True, dynamic=False)
with torch.no_grad():
    for name in ("masked", "joined", "padded"):
        ours = compiled(encoder, pixels, AttentionChoice(name, name))
        torch.testing.assert_close(ours, encoder(pixels), rtol=1e-4, atol=1e-5)
"""


def test_the_encoder_is_one_graph():
    """In a process of its own: the checks of shapes are no part of the graph."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
