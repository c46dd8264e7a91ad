"""Attention whose products and softmax come one after the other, which a CPU is quicker at in bf16.

torch's fused kernel for CPUs multiplies 64 to 256 queries at a time; bf16 products that small reach half of what vector
units can do. The price of large ones is that scores and their softmax are rounded to bf16.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip2sam.kernels.device import on_host

SCORES_BYTES = 8 * 2**20
"""Bounds the scores that exist at a time: a CPU wants them in its cache."""


def attend(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """`scaled_dot_product_attention`, to rounding."""
    if not on_host(q) or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    shape, tokens = q.shape, q.shape[2]
    q, k, v = (x.flatten(0, 1).contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    at_once = max(SCORES_BYTES // (tokens * tokens * q.element_size()), 1)
    scores = q.new_empty(min(at_once, len(q)), tokens, tokens)
    for i in range(0, len(q), at_once):
        some = slice(i, i + at_once)
        attend_into(q[some], k[some], v[some], scores[: len(q) - i].zero_(), out[some])
    return out.view(shape)


def attend_into(
    q: Float[Tensor, "heads queries dim"],
    k: Float[Tensor, "heads keys dim"],
    v: Float[Tensor, "heads keys dim"],
    scores: Float[Tensor, "heads queries keys"],
    out: Float[Tensor, "heads queries dim"],
) -> None:
    """Attention into `out`. What `scores` holds is added to the scaled products, and it is written over."""
    torch.baddbmm(scores, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5, out=scores)
    torch.softmax(scores, dim=-1, out=scores)
    torch.bmm(scores, v, out=out)
