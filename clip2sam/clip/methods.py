"""The training-free methods that get dense features out of a CLIP, as data.

They differ only in how a second, "new" path through the last blocks is fed; one engine
(`clip2sam.clip.surgery`) runs them all. Each block of the new path computes

    y = [y +] out_proj(attention(q, k, v))      q, k, v from the *original* path's normalised input
    y = y + mlp(ln_2(y))                        with `feed_forward` only

while the original path goes on as in CLIP and supplies the CLS token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clip2sam.errors import ConfigError, shown

ATTENTIONS = ("qk", "vv", "qq", "kk", "qq+kk", "identity")
"""The attentions that have a name."""


@dataclass(frozen=True)
class Method:
    """How dense features are computed.

    In a ResNet there is one attention, the pool at the end: `attention` says how it is fed, and
    `blocks`, `residual` and `feed_forward` have no meaning there. `blocks=0` is that pool as
    trained.

    Raises:
        ConfigError: an attention that is neither a known name nor callable, a negative number of
            blocks, a prior for the identity, which has no logits, or a field of another type.
    """

    name: str
    attention: str | Callable[..., Any]
    """The new path's attention: one of `ATTENTIONS`, named by the projections that give its logits,
    or a function (q, k, v, bias) of tensors (batch, heads, tokens, dim) that returns another one;
    `bias` is the prior's or None."""
    blocks: int
    """How many of the last blocks have the new path; 0 keeps CLIP as it is."""
    residual: bool
    """Whether a block of the new path adds to its input."""
    feed_forward: bool
    """Whether the new path has the feed-forward layers."""
    prior: Callable[[int, int], Any] | None = None
    """Spatial prior: (rows, cols) of the patch grid -> float tensor (rows * cols, rows * cols) that
    is added to the new path's attention logits of each query patch (first) for each key patch.
    The CLS token has no prior."""

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
        for name in ("residual", "feed_forward"):
            if not isinstance(getattr(self, name), bool):
                value = shown(getattr(self, name))
                raise ConfigError(f"{name} must be True or False, but got {value}")
        if self.prior is not None and not callable(self.prior):
            raise ConfigError(f"prior must be a function or None, but got {shown(self.prior)}")
        if self.prior is not None and self.attention == "identity":
            raise ConfigError("the identity has no attention logits; leave its prior out")


RAW_CLIP = Method("raw", attention="qk", blocks=0, residual=True, feed_forward=True)
"""CLIP's own patch tokens (Radford et al., 2021, https://arxiv.org/abs/2103.00020)."""

MASKCLIP = Method("maskclip", attention="identity", blocks=1, residual=True, feed_forward=True)
"""Each token attends only to itself in the last block (Zhou et al., 2022,
https://arxiv.org/abs/2112.01071)."""

CLIP_SURGERY = Method("surgery", attention="vv", blocks=6, residual=True, feed_forward=False)
"""Value-value attention in the last six blocks (Li et al., 2023,
https://arxiv.org/abs/2304.05653)."""

CLEARCLIP = Method("clearclip", attention="qq", blocks=1, residual=False, feed_forward=False)
"""Query-query attention alone in the last block (Lan et al., 2024,
https://arxiv.org/abs/2407.12442)."""

METHODS = {m.name: m for m in (RAW_CLIP, MASKCLIP, CLIP_SURGERY, CLEARCLIP)}
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
