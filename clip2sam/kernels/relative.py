"""Implementations of the attention in SAM's image encoder, and the fastest of them on a device.

score = scale * q.k + q.rel_h(key row) + q.rel_w(key column). The relative positions use the query
*without* its scale, so they can't be folded into the keys: they are a separate additive term.

- "masked": the term is an additive mask for `scaled_dot_product_attention`, made for a few heads or
  rows at a time. On a CPU products and softmax run one after the other, in the mask's own memory.
- "joined": the term becomes part of the product. The query is extended by q.rel_h for every row and
  q.rel_w for every column, the key by one-hot codes of its row and column, so q.k is the whole
  score. No mask, but longer heads: 208 channels in place of 80 for ViT-H.
- "padded": as "joined", with the values padded to the length of the keys, which some fused kernels
  require.
- "flex": FlexAttention adds the term score by score. It must be compiled and is meant for CUDA.

Source: Li et al., 2022, https://arxiv.org/abs/2112.01526 and https://arxiv.org/abs/2203.16527;
https://github.com/facebookresearch/segment-anything, `modeling/image_encoder.py`.
"""

import json
import logging
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip2sam.data.files import write_atomically
from clip2sam.kernels.attention import attend_into
from clip2sam.kernels.device import MASK_BYTES, budget, on_host

VECTOR_COLS = 32
"""With fewer columns, as in windows, the broadcast sum's inner loop is too short for vector units:
there the mask is made by a matrix product."""

log = logging.getLogger("clip2sam")


class AttentionChoice(NamedTuple):
    """Names from `IMPLEMENTATIONS`, for windowed and for global attention (`full`)."""

    windowed: str = "masked"
    full: str = "masked"


MASKED = AttentionChoice()


def masked(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    rel_h: Float[Tensor, "batch heads rows cols rows"],
    rel_w: Float[Tensor, "batch heads rows cols cols"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """Attention with the relative positions as an additive mask.

    Args:
        q, k, v: tokens of a grid of rows x cols, row by row.
        rel_h: what each query adds to its scores with the keys of each row.
        rel_w: the same for the keys of each column.
    """
    shape, (rows, cols) = q.shape, rel_h.shape[2:4]
    # Contiguous operands: strided ones cost as much time as the scores themselves.
    q, k, v, rel_h, rel_w = (x.flatten(0, 1).contiguous() for x in (q, k, v, rel_h, rel_w))
    # As many heads per call as the budget holds; if it doesn't hold one head, some of its rows.
    row_bytes = cols * rows * cols * q.element_size()
    limit = budget(MASK_BYTES, q.device)
    rows_per_call = min(max(limit // row_bytes, 1), rows)
    heads_per_call = min(max(limit // (row_bytes * rows), 1), len(q))
    # One buffer for all masks: fresh memory for each would cost as much as its scores.
    buffer = q.new_empty(heads_per_call * rows_per_call * cols, rows * cols)
    out = torch.empty_like(q)
    for i in range(0, len(q), heads_per_call):
        for row in range(0, rows, rows_per_call):
            heads, part = slice(i, i + heads_per_call), slice(row, row + rows_per_call)
            queries = slice(row * cols, (row + rows_per_call) * cols)
            mask = _mask(rel_h[heads, part], rel_w[heads, part], buffer)
            if on_host(q):
                # The mask's memory becomes the scores, so both stay in the cache.
                attend_into(q[heads, queries], k[heads], v[heads], mask, out[heads, queries])
            else:
                out[heads, queries] = F.scaled_dot_product_attention(
                    q[None, heads, queries], k[None, heads], v[None, heads], attn_mask=mask[None]
                )[0]
    return out.view(shape)


def _mask(
    rel_h: Float[Tensor, "heads some_rows cols rows"],
    rel_w: Float[Tensor, "heads some_rows cols cols"],
    buffer: Float[Tensor, "at_least_queries tokens"],
) -> Float[Tensor, "heads queries tokens"]:
    """The sum of both terms for each pair of query and key, written to the buffer."""
    heads, some_rows, cols, rows = rel_h.shape
    mask = buffer[: heads * some_rows * cols]
    if cols < VECTOR_COLS:
        # A product with one-hot codes looks up and adds both terms. It is exact: each sum has two
        # terms that are not zero.
        terms = torch.cat([rel_h, rel_w], dim=-1).flatten(0, 2)
        torch.mm(terms, _one_hot_positions(rows, cols, rel_h).T, out=mask)
    else:
        out = mask.view(heads, some_rows, cols, rows, cols)
        torch.add(rel_h[..., None], rel_w[..., None, :], out=out)
    return mask.view(heads, some_rows * cols, rows * cols)


def _one_hot_positions(rows: int, cols: int, like: Tensor) -> Float[Tensor, "tokens rows_and_cols"]:
    """One-hot codes of each token's row and column, side by side, in the dtype of `like`."""
    row_of = torch.eye(rows, dtype=like.dtype, device=like.device).repeat_interleave(cols, dim=0)
    col_of = torch.eye(cols, dtype=like.dtype, device=like.device).repeat(rows, 1)
    return torch.cat([row_of, col_of], dim=1)


def joined(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """As `masked`, with the relative positions as further channels of queries and keys."""
    queries, keys = _with_positions(q, k, rel_h, rel_w)
    return F.scaled_dot_product_attention(queries, keys, v, scale=q.shape[-1] ** -0.5)


def padded(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """As `joined`, with the values padded by zeros to the length of the keys."""
    queries, keys = _with_positions(q, k, rel_h, rel_w)
    values = F.pad(v, (0, keys.shape[-1] - v.shape[-1]))
    out = F.scaled_dot_product_attention(queries, keys, values, scale=q.shape[-1] ** -0.5)
    return out[..., : v.shape[-1]]


def _with_positions(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """Queries extended by their relative positions, and keys by one-hot codes of row and column."""
    rows, cols, dim = rel_h.shape[2], rel_h.shape[3], q.shape[-1]
    codes = _one_hot_positions(rows, cols, k).expand(*k.shape[:2], -1, -1)
    # Attention scales the whole product by dim ** -0.5; this factor cancels it for the positions.
    positions = torch.cat([rel_h, rel_w], dim=-1).flatten(2, 3) * dim**0.5
    queries, keys = torch.cat([q, positions], dim=-1), torch.cat([k, codes], dim=-1)
    missing = -keys.shape[-1] % 8  # fused kernels want a multiple of 8 channels
    return F.pad(queries, (0, missing)), F.pad(keys, (0, missing))


def flex(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """As `masked`, with the relative positions added inside the kernel: no mask is stored."""
    cols = rel_h.shape[3]
    rel_h, rel_w = rel_h.flatten(2, 3), rel_w.flatten(2, 3)

    return _flex_attention(q.is_cuda)(
        q,
        k,
        v,
        score_mod=lambda score, b, h, query, key: (
            score + rel_h[b, h, query, key // cols] + rel_w[b, h, query, key % cols]
        ),
    )


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "masked": masked,
    "joined": joined,
    "padded": padded,
    "flex": flex,
}
"""All take (q, k, v, rel_h, rel_w), shaped as for `masked`, and agree up to rounding."""


def fastest(encoder: Any, batch: int, file: Path) -> AttentionChoice:
    """The fastest implementations for an `ImageEncoderViT` on its device, in its dtype.

    On a CPU, and in fp32, that is "masked". On a GPU all are timed once and the times are kept in
    `file`, so that later runs choose the same implementation and get the same last digits.

    Args:
        encoder: segment-anything's `ImageEncoderViT`, or another one, which has no choice.
        batch: images per batch.
        file: JSON file of times; it is made when something was timed.
    """
    weight = encoder.neck[0].weight
    blocks = [block for block in getattr(encoder, "blocks", ()) if block.attn.use_rel_pos]
    if not weight.is_cuda or weight.dtype == torch.float32 or not blocks:
        return MASKED
    return AttentionChoice(
        *(
            fastest_at(shape, weight.dtype, weight.device, file)
            for shape in attention_shapes(blocks, batch)
        )
    )


def attention_shapes(
    blocks: list[Any], batch: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """(batch, heads, side, dim) of windowed attention, where the batch counts windows, and of
    global attention, for blocks of an `ImageEncoderViT` with relative positions."""
    heads = blocks[0].attn.num_heads
    dim = blocks[0].attn.qkv.in_features // heads
    # A table of relative positions has 2 * side - 1 entries; the longest one is a global block's.
    side = max((len(block.attn.rel_pos_h) + 1) // 2 for block in blocks)
    window = next((block.window_size for block in blocks if block.window_size), side)
    windows = (-(-side // window)) ** 2  # rounded up: the last ones extend beyond the image
    return (batch * windows, heads, window, dim), (batch, heads, side, dim)


def fastest_at(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, file: Path
) -> str:
    """The fastest implementation at (batch, heads, side, dim), by the times in `file`.

    Times that are missing there are measured and added.
    """
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    size = "x".join(map(str, shape))
    key = f"{where}, torch {torch.__version__}, {dtype}, batch x heads x side x dim {size}"
    times = _read(file)
    if key not in times:
        measured = {name: _try(name, shape, dtype, device) for name in IMPLEMENTATIONS}
        times[key] = {name: s for name, s in measured.items() if s is not None}
        _write(file, times)
    best = min(times[key], key=times[key].__getitem__, default="masked")
    log.info("attention: %s for %s (seconds: %s)", best, key, times[key])
    return best


def _try(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> float | None:
    """Its seconds, or None if it fails here: no kernel for the shape, no compiler, no memory."""
    try:
        return measure(name, *shape, dtype, device)
    except Exception as error:
        log.warning(
            "attention: %s doesn't work here (%s: %s); left out", name, type(error).__name__, error
        )
        return None


@torch.no_grad()
def measure(
    name: str,
    batch: int,
    heads: int,
    side: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    times: int = 5,
) -> float:
    """Median seconds of one attention over side x side tokens, after one call to warm up.

    Raises whatever the implementation raises.
    """
    q, k, v = (
        torch.randn(batch, heads, side**2, dim, dtype=dtype, device=device) for _ in range(3)
    )
    rel_h, rel_w = (
        torch.randn(batch, heads, side, side, side, dtype=dtype, device=device) for _ in range(2)
    )
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        IMPLEMENTATIONS[name](q, k, v, rel_h, rel_w)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # calls return before the GPU is done
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s can't be read (%s); measured again", file, error)
        return {}


def _write(file: Path, times: dict[str, dict[str, float]]) -> None:
    """Write the file whole, since another process may do the same now; a failure is only logged."""
    try:
        write_atomically(file, json.dumps(times, indent=1).encode())
    except OSError as error:
        log.warning("the next run measures attention again: %s", error)
