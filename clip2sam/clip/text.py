"""Text features: each text prompt in many templates, each normalised, averaged, normalised again.

A prompt in a template ("a photo of a cat.") is called a text here.

Sources: Radford et al., 2021 (prompt ensembling); https://github.com/xmed-lab/CLIP_Surgery (the 85
templates).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from clip2sam.kernels.device import TEXT_PROMPTS_PER_BATCH

TEMPLATES: tuple[str, ...] = (
    *(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""The 80 templates for ImageNet and five 'in the scene', as published with CLIP Surgery."""

Tokenizer = Callable[[list[str]], Int[Tensor, "texts context"]]
"""Texts to token ids, padded or cut to the model's context, as open_clip's tokenizers."""


@torch.no_grad()
def encode_tokens(
    model: Any, tokens: Int[Tensor, "texts context"]
) -> Float[Tensor, "texts channels"]:
    """What `model.encode_text` returns for tokenised texts, up to rounding, in less time.

    CLIP's text transformer is causal, and its feature is read at the end-of-text token. So the
    tokens after that one don't matter, and a prefix that several texts share has the same
    activations in all of them: it is computed once. The texts become a tree of tokens, laid out as
    one sequence in which each token attends to its ancestors. A text tower of another kind runs as
    it is.

    Args:
        model: an open_clip CLIP.
        tokens: from its tokenizer. The end-of-text token has the highest id, as in CLIP.

    Returns:
        One feature a text, not normalised, in the model's dtype and on its device.
    """
    device = model.logit_scale.device
    if not _is_causal(model):
        return model.encode_text(tokens.to(device))
    tree = _token_tree(tokens)
    dtype = model.token_embedding.weight.dtype
    # A token's position is its depth in the tree, not its place in the sequence.
    positions = model.positional_embedding[tree.depths.to(device)].to(dtype)
    x = model.token_embedding(tree.tokens.to(device)) + positions
    x = model.transformer(x[None], attn_mask=tree.mask.to(device))[0]
    x = model.ln_final(x)[tree.ends.to(device)]
    projection = model.text_projection
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


class _TokenTree(NamedTuple):
    """Texts as a prefix tree, one node for each token that comes after the same prefix."""

    tokens: Int[Tensor, "nodes"]
    depths: Int[Tensor, "nodes"]
    """Position in the text."""
    mask: Float[Tensor, "nodes nodes"]
    """Additive attention mask: 0 for a node itself and its ancestors, else -inf."""
    ends: Int[Tensor, "texts"]
    """The node of each text's end-of-text token."""


def _token_tree(tokens: Int[Tensor, "texts context"]) -> _TokenTree:
    """The prefix tree of texts, each up to its end-of-text token, which has the highest id."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node, numbered in order
    depths: list[int] = []
    paths: list[list[int]] = []  # of each node: its ancestors from the root, then itself
    ends = []
    for text, end in zip(tokens.tolist(), tokens.argmax(dim=-1).tolist(), strict=True):
        path: list[int] = []
        for depth, token in enumerate(text[: end + 1]):
            key = (path[-1] if path else -1, token)
            if key not in nodes:
                nodes[key] = len(nodes)
                depths.append(depth)
                paths.append([*path, nodes[key]])
            path.append(nodes[key])
        ends.append(path[-1])
    mask = torch.full((len(nodes), len(nodes)), -torch.inf)
    for node, path in enumerate(paths):
        mask[node, path] = 0.0
    ids = torch.tensor([token for _, token in nodes])
    return _TokenTree(ids, torch.tensor(depths), mask, torch.tensor(ends))


def _is_causal(model: Any) -> bool:
    """Whether this is CLIP's own text tower: causal, and read at its end-of-text token."""
    return (
        getattr(model, "text_pool_type", None) == "argmax"
        and getattr(model, "attn_mask", None) is not None
    )


@torch.no_grad()
def encode_prompts(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "prompts channels"]:
    """One unit feature a text prompt, in fp32: the normalised mean over its templates.

    Args:
        model: an open_clip CLIP.
        tokenizer: its tokenizer: strings to integers (texts, context).
        prompts: replace each template's "{}"; the empty string is allowed.
        templates: texts with one "{}" each.

    Warns:
        UserWarning: a prompt is too long for the model's context in some template; its end is cut.
    """
    _warn_of_long(tokenizer, prompts, templates)
    features = [
        _mean_feature(model, tokenizer, [t.replace("{}", p) for t in templates]) for p in prompts
    ]
    return F.normalize(torch.stack(features), dim=-1)


def _mean_feature(model: Any, tokenizer: Tokenizer, texts: list[str]) -> Float[Tensor, "channels"]:
    """The mean of the texts' unit features: one prompt's, because they share long prefixes."""
    size = TEXT_PROMPTS_PER_BATCH
    batches = [texts[i : i + size] for i in range(0, len(texts), size)]
    features = [
        F.normalize(encode_tokens(model, tokenizer(batch)).float(), dim=-1) for batch in batches
    ]
    return torch.cat(features).mean(dim=0)


def _warn_of_long(tokenizer: Any, prompts: Sequence[str], templates: Sequence[str]) -> None:
    """Name the prompts that don't fit into the context; tokenizers cut them silently."""
    encode, context = getattr(tokenizer, "encode", None), getattr(tokenizer, "context_length", None)
    if encode is None or context is None:
        return
    # Two tokens are the start and the end of the text.
    room = context - 2 - max(len(encode(t.replace("{}", ""))) for t in templates)
    for prompt in prompts:
        length = len(encode(prompt))
        if length > room:
            warnings.warn(
                f"label {prompt!r} is {length} tokens long, but only {room} of the model's "
                f"{context} are free in the longest template: its end is ignored there; shorten "
                "it or give shorter templates",
                stacklevel=4,
            )
