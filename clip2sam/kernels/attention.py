"""Attention as separate matrix products and softmax: in bf16 faster on a CPU than the fused kernel.

PyTorch's fused CPU kernel works on tiles of 64 to 256 queries. bf16 products that small reach half
of the speed of the vector units. The price of large products: the scores and their softmax are
rounded to bf16.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip2sam.kernels.device import SCORES_BYTES, on_host


def attend(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
) -> Float[Tensor, "batch heads tokens dim"]:
    """`scaled_dot_product_attention`, up to rounding; other implementation in bf16 on a CPU."""
    if not on_host(q) or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    shape, tokens = q.shape, q.shape[2]
    # Contiguous heads: batched products over strided views are slower than the copy.
    q, k, v = (x.flatten(0, 1).contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    # A few heads at a time, so that their scores are still in the cache for softmax and product.
    per_chunk = max(SCORES_BYTES // (tokens * tokens * q.element_size()), 1)
    # One buffer for all chunks: fresh memory costs a page fault for every 4 KB.
    scores = q.new_empty(min(per_chunk, len(q)), tokens, tokens)
    for i in range(0, len(q), per_chunk):
        chunk = slice(i, i + per_chunk)
        # No additive mask here, so it is zero.
        attend_into(q[chunk], k[chunk], v[chunk], scores[: len(q) - i].zero_(), out[chunk])
    return out.view(shape)


def attend_into(
    q: Float[Tensor, "heads queries dim"],
    k: Float[Tensor, "heads keys dim"],
    v: Float[Tensor, "heads keys dim"],
    scores: Float[Tensor, "heads queries keys"],
    out: Float[Tensor, "heads queries dim"],
) -> None:
    """Attention written to `out`.

    Args:
        q, k, v: queries, keys and values; products are scaled by dim ** -0.5.
        scores: additive mask, then used as scratch.
        out: where the result goes.
    """
    # Scale, product and mask in one call, and softmax in place: the scores are read and written
    # as few times as possible.
    torch.baddbmm(scores, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5, out=scores)
    torch.softmax(scores, dim=-1, out=scores)
    torch.bmm(scores, v, out=out)
