"""The ways to compute the attention of SAM's image encoder, and which of them is the fastest on a device.

A score is scale * q.k + q.Rh(row) + q.Rw(col): the relative positions use the query without its scale.

- "masked": the relative positions are `scaled_dot_product_attention`'s mask, made for some heads or rows at a time; on
  a CPU products and softmax come one after the other, in the mask's place.
- "joined": the query carries its products with all rows' and columns' positions, and the key says by a one which row
  and column it is in, so that q.k is the whole score. No mask, longer heads: 208 in place of 80 for ViT-H.
- "flex": FlexAttention looks them up score by score. It has to be compiled and is meant for CUDA.

Source: Li et al., 2022, https://arxiv.org/abs/2112.01526 and https://arxiv.org/abs/2203.16527;
https://github.com/facebookresearch/segment-anything, `modeling/image_encoder.py`.
"""

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip2sam.kernels.attention import SCORES_BYTES, attend_into
from clip2sam.kernels.device import on_host

MASK_BYTES = {"cpu": SCORES_BYTES, "cuda": 512 * 2**20}
"""Bounds the mask of one call: on a CPU the scores take its place, a GPU is idle with a small one."""

VECTOR = 32
"""With fewer columns, as in windows, an addition over rows and columns is too short for vector units."""

log = logging.getLogger("clip2sam")


class Attention(NamedTuple):
    """The names of the ways for windows and for the whole picture."""

    windows: str = "masked"
    whole: str = "masked"


MASKED = Attention()


def masked(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    down: Float[Tensor, "batch heads rows cols rows"],
    across: Float[Tensor, "batch heads rows cols cols"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """Attention with the relative positions as a mask.

    Args:
        q, k, v: tokens row by row.
        down, across: what each query gives to the keys of each row, and of each column.
    """
    shape, (rows, cols) = q.shape, down.shape[2:4]
    # Everything in a row in memory, and one mask for all pieces: strides and fresh memory cost as much as the scores.
    q, k, v, down, across = (x.flatten(0, 1).contiguous() for x in (q, k, v, down, across))
    row_bytes = cols * rows * cols * q.element_size()
    limit = MASK_BYTES.get(q.device.type, MASK_BYTES["cuda"])
    high, wide = (
        min(max(limit // row_bytes, 1), rows),
        min(max(limit // (row_bytes * rows), 1), len(q)),
    )
    mask, out = q.new_empty(wide * high * cols, rows * cols), torch.empty_like(q)
    for i in range(0, len(q), wide):
        for row in range(0, rows, high):
            some, part = slice(i, i + wide), slice(row, row + high)
            tokens = slice(row * cols, (row + high) * cols)
            here = _mask(down[some, part], across[some, part], mask)
            if on_host(q):
                attend_into(q[some, tokens], k[some], v[some], here, out[some, tokens])
            else:
                out[some, tokens] = F.scaled_dot_product_attention(
                    q[None, some, tokens], k[None, some], v[None, some], attn_mask=here[None]
                )[0]
    return out.view(shape)


def _mask(down: Tensor, across: Tensor, buffer: Tensor) -> Float[Tensor, "heads queries keys"]:
    """What each query gives to each key, by its row and by its column; made in the buffer."""
    heads, high, cols, rows = down.shape
    here = buffer[: heads * high * cols]
    if cols < VECTOR:
        torch.mm(
            torch.cat([down, across], dim=-1).flatten(0, 2), _places(rows, cols, down).T, out=here
        )
    else:
        torch.add(
            down[..., None], across[..., None, :], out=here.view(heads, high, cols, rows, cols)
        )
    return here.view(heads, high * cols, rows * cols)


def _places(rows: int, cols: int, like: Tensor) -> Float[Tensor, "tokens rows_and_cols"]:
    """A one where each token's row is and one where its column is: a product with it looks up both, exactly."""
    row_of = torch.eye(rows, dtype=like.dtype, device=like.device).repeat_interleave(cols, dim=0)
    col_of = torch.eye(cols, dtype=like.dtype, device=like.device).repeat(rows, 1)
    return torch.cat([row_of, col_of], dim=1)


def joined(q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """As `masked`, with the relative positions inside the heads."""
    return F.scaled_dot_product_attention(
        *_with_positions(q, k, down, across), v, scale=q.shape[-1] ** -0.5
    )


def padded(q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """As `joined`, with values as long as the keys, which some kernels insist on."""
    longer, keys = _with_positions(q, k, down, across)
    values = F.pad(v, (0, keys.shape[-1] - v.shape[-1]))
    out = F.scaled_dot_product_attention(longer, keys, values, scale=q.shape[-1] ** -0.5)
    return out[..., : v.shape[-1]]


def _with_positions(q: Tensor, k: Tensor, down: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with the positions at their end, filled up to a multiple of 8 as kernels want it."""
    rows, cols, dim = down.shape[2], down.shape[3], q.shape[-1]
    missing = -(dim + rows + cols) % 8
    places = _places(rows, cols, k).expand(*k.shape[:2], -1, -1)
    positions = (
        torch.cat([down, across], dim=-1).flatten(2, 3) * dim**0.5
    )  # the scale takes it away again
    queries, keys = torch.cat([q, positions], dim=-1), torch.cat([k, places], dim=-1)
    return F.pad(queries, (0, missing)), F.pad(keys, (0, missing))


def flex(q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """As `masked`, with the relative positions looked up for every score."""
    cols = down.shape[3]
    down, across = down.flatten(2, 3), across.flatten(2, 3)

    return _flex_attention(q.is_cuda)(
        q,
        k,
        v,
        score_mod=lambda score, b, h, query, key: (
            score + down[b, h, query, key // cols] + across[b, h, query, key % cols]
        ),
    )


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "masked": masked,
    "joined": joined,
    "padded": padded,
    "flex": flex,
}


def fastest(encoder: Any, batch: int, kept: Path) -> Attention:
    """The fastest ways for an `ImageEncoderViT` where it is, for batches of that size.

    On a CPU, and in float32, that is "masked". On a GPU they are measured once and the result is kept in the
    file `kept`, so that every later run takes the same way and gets the same last digits.
    """
    weight = encoder.neck[0].weight
    blocks = [block for block in encoder.blocks if block.attn.use_rel_pos]
    if not _on_gpu(weight) or weight.dtype == torch.float32 or not blocks:
        return MASKED
    heads, dim = (
        blocks[0].attn.num_heads,
        blocks[0].attn.qkv.in_features // blocks[0].attn.num_heads,
    )
    whole = max(
        (len(block.attn.rel_pos_h) + 1) // 2 for block in blocks
    )  # tables go from -(side - 1) to side - 1
    window = next((block.window_size for block in blocks if block.window_size), whole)
    shapes = [(batch * (-(-whole // window)) ** 2, heads, window, dim), (batch, heads, whole, dim)]
    return Attention(*(_fastest_at(shape, weight.dtype, weight.device, kept) for shape in shapes))


def _on_gpu(weight: Tensor) -> bool:
    return weight.is_cuda


def _fastest_at(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, kept: Path
) -> str:
    """The fastest way at (batch, heads, side, dim), as kept, or else measured and kept."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = f"{where}, torch {torch.__version__}, {dtype}, batch x heads x side x dim {'x'.join(map(str, shape))}"
    known = _read(kept)
    if key not in known:
        known[key] = {
            way: seconds
            for way in WAYS
            if (seconds := _tried(way, shape, dtype, device)) is not None
        }
        _write(kept, known)
    best = min(known[key], key=known[key].__getitem__, default="masked")
    log.info("attention: %s for %s (seconds: %s)", best, key, known[key])
    return best


def _tried(
    way: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> float | None:
    """How long a way takes, or None if it doesn't work here: no kernel for the shape, no compiler, no memory."""
    try:
        return measure(way, *shape, dtype, device)
    except Exception as error:
        log.warning(
            "attention: %s doesn't work here (%s: %s); left out", way, type(error).__name__, error
        )
        return None


@torch.no_grad()
def measure(
    way: str,
    batch: int,
    heads: int,
    side: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    times: int = 5,
) -> float:
    """Median seconds of one attention over side x side tokens, after a call to warm up. Raises what the way raises."""
    q, k, v = (
        torch.randn(batch, heads, side**2, dim, dtype=dtype, device=device) for _ in range(3)
    )
    down, across = (
        torch.randn(batch, heads, side, side, side, dtype=dtype, device=device) for _ in range(2)
    )
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        WAYS[way](q, k, v, down, across)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _read(kept: Path) -> dict[str, dict[str, float]]:
    try:
        return dict(json.loads(kept.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s can't be read (%s); measured again", kept, error)
        return {}


def _write(kept: Path, known: dict[str, dict[str, float]]) -> None:
    """Move the file into place whole; another process may write it at the same time."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=kept.parent, suffix=".part", delete=False
        ) as part:
            json.dump(known, part, indent=1)
        os.replace(part.name, kept)
    except OSError as error:
        log.warning("%s can't be written (%s); the next run measures again", kept, error)
