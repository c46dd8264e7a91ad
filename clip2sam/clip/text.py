"""Text features: every prompt in many sentences, each normalised, averaged, normalised again.

Sources: Radford et al., 2021 (prompt ensembling); https://github.com/xmed-lab/CLIP_Surgery (the 85 templates).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

TEMPLATES: tuple[str, ...] = (
    *(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""The 80 sentences for ImageNet and five 'in the scene', as published with CLIP Surgery."""

SENTENCES_A_BATCH = 128
"""Bounds the memory of the text tower. One prompt's sentences go together, they begin alike."""

Tokenizer = Callable[[list[str]], Int[Tensor, "sentences context"]]


@torch.no_grad()
def encode_sentences(
    model: Any, tokens: Int[Tensor, "sentences context"]
) -> Float[Tensor, "sentences channels"]:
    """Encode tokenised sentences: `model.encode_text`, without the work that can't matter.

    A CLIP's text transformer is causal and its feature is read at the end-of-text token. So what is behind that token
    doesn't matter, and a beginning that sentences share is the same in all of them: it is computed once. The sentences
    become a tree of tokens, laid out as one sequence in which a token sees those on its way to the root. The result is
    the same. A tower of another make runs whole.
    """
    device = model.logit_scale.device
    if not _is_causal(model):
        return model.encode_text(tokens.to(device))
    tree = _as_tree(tokens)
    dtype = model.token_embedding.weight.dtype
    x = model.token_embedding(tree.tokens.to(device)) + model.positional_embedding[
        tree.depths.to(device)
    ].to(dtype)
    x = model.transformer(x[None], attn_mask=tree.mask.to(device))[0]
    x = model.ln_final(x)[tree.ends.to(device)]
    projection = model.text_projection
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


class _Tree(NamedTuple):
    tokens: Int[Tensor, "nodes"]
    depths: Int[Tensor, "nodes"]
    """Places in the sentence."""
    mask: Float[Tensor, "nodes nodes"]
    """0 where a node sees another, which is on its way to the root, else -inf."""
    ends: Int[Tensor, "sentences"]
    """Where each sentence's end-of-text token is."""


def _as_tree(tokens: Int[Tensor, "sentences context"]) -> _Tree:
    """Sentences up to their end-of-text tokens, which have the highest number, as a tree of what they share."""
    nodes: dict[
        tuple[int, int], int
    ] = {}  # (parent, token) -> node; they are numbered as they come
    depths: list[int] = []
    ways: list[list[int]] = []
    ends = []
    for sentence, end in zip(tokens.tolist(), tokens.argmax(dim=-1).tolist(), strict=True):
        way: list[int] = []
        for depth, token in enumerate(sentence[: end + 1]):
            key = (way[-1] if way else -1, token)
            if key not in nodes:
                nodes[key] = len(nodes)
                depths.append(depth)
                ways.append([*way, nodes[key]])
            way.append(nodes[key])
        ends.append(way[-1])
    mask = torch.full((len(nodes), len(nodes)), -torch.inf)
    for node, way in enumerate(ways):
        mask[node, way] = 0.0
    return _Tree(
        torch.tensor([token for _, token in nodes]), torch.tensor(depths), mask, torch.tensor(ends)
    )


def _is_causal(model: Any) -> bool:
    """Whether this is CLIP's own text tower, read at its end-of-text token."""
    return (
        getattr(model, "text_pool_type", None) == "argmax"
        and getattr(model, "attn_mask", None) is not None
    )


@torch.no_grad()
def encode_prompts(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "prompts channels"]:
    """Return one unit feature a prompt, in float32: the normalised mean of its normalised sentences.

    Args:
        model: an open_clip CLIP.
        tokenizer: its tokenizer: strings to integers (sentences, context).
        prompts: what is put into each template's "{}"; the empty string is allowed.
        templates: sentences with one "{}" each.

    Warns:
        UserWarning: a prompt has sentences longer than the model's context; their ends are cut.
    """
    _warn_of_long(tokenizer, prompts, templates)
    features = [
        _mean_feature(model, tokenizer, [t.replace("{}", p) for t in templates]) for p in prompts
    ]
    return F.normalize(torch.stack(features), dim=-1)


def _mean_feature(
    model: Any, tokenizer: Tokenizer, sentences: list[str]
) -> Float[Tensor, "channels"]:
    batches = [
        sentences[i : i + SENTENCES_A_BATCH] for i in range(0, len(sentences), SENTENCES_A_BATCH)
    ]
    features = [
        F.normalize(encode_sentences(model, tokenizer(batch)).float(), dim=-1) for batch in batches
    ]
    return torch.cat(features).mean(dim=0)


def _warn_of_long(tokenizer: Any, prompts: Sequence[str], templates: Sequence[str]) -> None:
    """Name the prompts that don't fit into the context; tokenizers cut them without a word."""
    encode, context = getattr(tokenizer, "encode", None), getattr(tokenizer, "context_length", None)
    if encode is None or context is None:
        return
    room = context - 2 - max(len(encode(t.replace("{}", ""))) for t in templates)
    for prompt in prompts:
        length = len(encode(prompt))
        if length > room:
            warnings.warn(
                f"label {prompt!r} is {length} tokens long, but only {room} of the model's {context} are free in the "
                "longest template: its end is ignored there; shorten it or give shorter templates",
                stacklevel=4,
            )
