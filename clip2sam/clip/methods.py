"""The training-free ways of getting dense features out of a CLIP, as data.

They differ only in how a second, "new" path through the last blocks is fed; one engine
(`clip2sam.clip.surgery`) runs them all. Each block of the new path computes

    y = [y +] out_proj(attention(q, k, v))        q, k, v from the *original* path's normalised input
    y = y + mlp(ln_2(y))                          with `feed_forward` only

while the original path goes on as it always did and supplies the CLS token.
"""

from dataclasses import dataclass
from typing import Literal

from clip2sam.errors import ConfigError

AttentionKind = Literal["qk", "vv", "qq", "kk", "qq+kk", "identity"]


@dataclass(frozen=True)
class Method:
    """A way to compute dense features.

    In a ResNet there is one attention, the pool at the end: `attention` says how it is fed, and `blocks`,
    `residual` and `feed_forward` have no meaning there. `blocks=0` is that pool as trained.
    """

    name: str
    attention: AttentionKind
    blocks: int
    """How many of the last blocks have the new path; 0 keeps the CLIP as it is."""
    residual: bool
    """Whether a block of the new path adds to its input."""
    feed_forward: bool
    """Whether the new path has the feed-forward layers."""


RAW_CLIP = Method("raw", attention="qk", blocks=0, residual=True, feed_forward=True)
"""CLIP's own patch tokens (Radford et al., 2021, https://arxiv.org/abs/2103.00020)."""

MASKCLIP = Method("maskclip", attention="identity", blocks=1, residual=True, feed_forward=True)
"""Every token attends to itself in the last block (Zhou et al., 2022, https://arxiv.org/abs/2112.01071)."""

CLIP_SURGERY = Method("surgery", attention="vv", blocks=6, residual=True, feed_forward=False)
"""Value-value attention over the last six blocks (Li et al., 2023, https://arxiv.org/abs/2304.05653)."""

CLEARCLIP = Method("clearclip", attention="qq", blocks=1, residual=False, feed_forward=False)
"""Query-query attention alone in the last block (Lan et al., 2024, https://arxiv.org/abs/2407.12442)."""

METHODS = {m.name: m for m in (RAW_CLIP, MASKCLIP, CLIP_SURGERY, CLEARCLIP)}


def as_method(method: Method | str) -> Method:
    """Return the method of that name, or the method itself.

    Raises:
        ConfigError: no method has that name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ConfigError(f"no method is called {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method]
