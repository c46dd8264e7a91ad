"""The training-free methods that get dense features out of a CLIP, as data.

They differ only in how a second, "new" path through the last blocks is fed; one engine
(`clip2sam.clip.surgery`) runs them all. Each block of the new path computes

    y = residual * y + out_proj(attention(q, k, v))    q, k, v: of the *original* path's block
    y = y + mlp(ln_2(y))                               with `feed_forward` only

while the original path goes on as in CLIP and supplies the CLS token.

Each record says what the method's paper and published code do in a ViT. Of the code around it
nothing is taken over: positional embeddings are resized as published with CLIP Surgery, whichever
method runs, and sliding windows, refinement and thresholds belong to other rooms.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from clip2sam.errors import ConfigError, shown

ATTENTIONS = ("qk", "vv", "qq", "kk", "qq+kk", "identity", "self-self")
"""The attentions that have a name."""


@dataclass(frozen=True)
class Method:
    """How dense features are computed.

    In a ResNet there is one attention, the pool at the end: `attention` says how it is fed, and
    `blocks`, `residual` and `feed_forward` have no meaning there. `blocks=0` is that pool as
    trained.

    Raises:
        ConfigError: an attention that is neither a known name nor callable, a negative number of
            blocks, a prior for the identity, which has no logits, iterations of an attention that
            has none, or a field of another type.
    """

    name: str
    attention: str | Callable[..., Any]
    """The new path's attention: one of `ATTENTIONS`, named by the projections that give its logits
    ("qq+kk": the sum of two attentions; "self-self": GEM's mean of three; "identity": each token's
    own value), or a function (q, k, v, bias) of tensors (batch, heads, tokens, dim) that returns
    another one; `bias` is the prior's or None."""
    blocks: int
    """How many of the last blocks have the new path; 0 keeps CLIP as it is."""
    residual: bool | int | float
    """Whether a block of the new path adds to its input, or the factor on that input: False is 0,
    True is 1.

    ClearCLIP's paper has its factor alpha on the attention's output, X_res + alpha * X_attn. In one
    last block without feed-forward that is the factor 1 / alpha here, because the norm that follows
    takes the scale out.
    """
    feed_forward: bool
    """Whether the new path has the feed-forward layers."""
    prior: Callable[[int, int], Any] | None = None
    """Spatial prior: (rows, cols) of the patch grid -> float tensor (rows * cols, rows * cols) that
    is added to the new path's attention logits of each query patch (first) for each key patch.
    The CLS token has no prior."""
    iterations: int = 1
    """How often "self-self" moves queries, keys and values to the mean of those like them before it
    attends. Other attentions have no iterations."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"a method's name must be a text, but got {shown(self.name)}")
        if not callable(self.attention) and self.attention not in ATTENTIONS:
            raise ConfigError(
                f"attention must be a function or one of {', '.join(ATTENTIONS)}, "
                f"but got {shown(self.attention)}"
            )
        if type(self.blocks) is not int or self.blocks < 0:
            raise ConfigError(
                f"blocks must be a whole number of 0 or more, but got {shown(self.blocks)}"
            )
        self._check_residual()
        if not isinstance(self.feed_forward, bool):
            raise ConfigError(
                f"feed_forward must be True or False, but got {shown(self.feed_forward)}"
            )
        if self.prior is not None and not callable(self.prior):
            raise ConfigError(f"prior must be a function or None, but got {shown(self.prior)}")
        if self.prior is not None and self.attention == "identity":
            raise ConfigError("the identity has no attention logits; leave its prior out")
        if type(self.iterations) is not int or self.iterations < 0:
            raise ConfigError(
                f"iterations must be a whole number of 0 or more, but got {shown(self.iterations)}"
            )
        if self.iterations != 1 and self.attention != "self-self":
            raise ConfigError(
                f'only the attention "self-self" has iterations, but got {self.iterations} of them '
                f"for {shown(self.attention)}; leave them out"
            )

    def _check_residual(self) -> None:
        """A bool stays; any other number becomes a float, as which JSON knows it."""
        value = self.residual
        if isinstance(value, bool):
            return
        if not isinstance(value, Real) or not abs(value) <= sys.float_info.max:
            raise ConfigError(
                "residual must be True, False or a finite number, the factor on a block's input, "
                f"but got {shown(value)}"
            )
        object.__setattr__(self, "residual", float(value))  # a frozen dataclass has no other way


def gaussian(rows: int, cols: int, std: float = 5.0) -> np.ndarray:
    """NACLIP's spatial prior: exp(-d^2 / (2 std^2)) at a distance of d patches, float32 (rows *
    cols, rows * cols).

    It is added to the scaled logits as it is, 1 at the query's own patch (Hajimiri et al., 2024,
    https://arxiv.org/abs/2404.08181; https://github.com/sinahmr/NACLIP, clip/model.py; a standard
    deviation of 5 in naclip.py).
    """
    row, col = np.divmod(np.arange(rows * cols), cols)
    squared = np.subtract.outer(row, row) ** 2 + np.subtract.outer(col, col) ** 2
    return np.exp(squared / (-2 * std**2)).astype(np.float32)


RAW_CLIP = Method("raw", attention="qk", blocks=0, residual=True, feed_forward=True)
"""CLIP's own patch tokens (Radford et al., 2021, https://arxiv.org/abs/2103.00020)."""

MASKCLIP = Method("maskclip", attention="identity", blocks=1, residual=True, feed_forward=True)
"""Each token attends only to itself in the last block (Zhou et al., 2022,
https://arxiv.org/abs/2112.01071).

The block keeps its residual and its feed-forward layers, as in the published code for ViTs
(https://github.com/chongzhou96/MaskCLIP, mmseg/models/backbones/vit.py). Others leave them out and
call that MaskCLIP, too. In a ResNet the pool's positional embedding is left out, as published
(mmseg/models/decode_heads/maskclip_head.py).
"""

CLIP_SURGERY = Method("surgery", attention="vv", blocks=6, residual=True, feed_forward=False)
"""Value-value attention in the last six blocks (Li et al., 2023,
https://arxiv.org/abs/2304.05653)."""

CLEARCLIP = Method("clearclip", attention="qq", blocks=1, residual=False, feed_forward=False)
"""Query-query attention alone in the last block (Lan et al., 2024,
https://arxiv.org/abs/2407.12442; https://github.com/mc-lan/ClearCLIP, open_clip/transformer.py)."""

SCLIP = Method("sclip", attention="qq+kk", blocks=1, residual=True, feed_forward=True)
"""Correlative self-attention in the last block, query-query and key-key, each with its own softmax;
the block is CLIP's otherwise (Wang et al., 2023, https://arxiv.org/abs/2312.01597;
https://github.com/wangf3014/SCLIP, clip/model.py)."""

NACLIP = Method(
    "naclip",
    attention="kk",
    blocks=1,
    residual=False,
    feed_forward=False,
    prior=gaussian,
)
"""Key-key attention with a Gaussian around each patch in its logits, alone in the last block (their
"reduced" architecture; Hajimiri et al., 2024, https://arxiv.org/abs/2404.08181;
https://github.com/sinahmr/NACLIP, clip/model.py)."""

GEM = replace(CLIP_SURGERY, name="gem", attention="self-self")
"""CLIP Surgery's path with the mean of three self-self attentions: of queries, of keys and of
values, each normalised, moved once to the mean of those like them, with a temperature from the
block's input (Bousselham et al., 2023, https://arxiv.org/abs/2312.00878; https://github.com/WalBouss/GEM,
gem/gem_utils.py; its depth of 7 is six blocks). Not defined for ResNets."""

METHODS = {m.name: m for m in (RAW_CLIP, MASKCLIP, CLIP_SURGERY, CLEARCLIP, SCLIP, NACLIP, GEM)}
"""The published methods by name, for the command line. A method of your own is an object; it need
not be in here."""


def as_method(method: Any) -> Method:
    """Return the published method of that name, or the method itself.

    Raises:
        ConfigError: no method has that name.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"no method is called {shown(method)}; choose one of {', '.join(METHODS)} or give a "
            "Method object"
        )
    return METHODS[method]
