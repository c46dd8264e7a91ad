"""Text features: every prompt in many sentences, each normalised, averaged, normalised again.

Sources: Radford et al., 2021 (prompt ensembling); https://github.com/xmed-lab/CLIP_Surgery (the 85 templates).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

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

SENTENCES_A_BATCH = 512
"""Bounds the memory of the text tower; 1,203 labels are 102,255 sentences."""

Tokenizer = Callable[[list[str]], Int[Tensor, "sentences context"]]


@torch.no_grad()
def encode_sentences(model: Any, tokens: Int[Tensor, "sentences context"]) -> Float[Tensor, "sentences channels"]:
    """Encode tokenised sentences: `model.encode_text`, without the work that can't matter.

    A CLIP's text transformer is causal and its feature is read at the end-of-text token, so everything behind
    the batch's last such token is cut off; the result is the same. A tower of another make runs whole.
    """
    device = model.logit_scale.device
    if not _is_causal(model):
        return model.encode_text(tokens.to(device))
    ends = tokens.argmax(dim=-1)  # the end-of-text token has the highest number
    length = int(ends.max()) + 1  # known on the host, so the device isn't asked
    tokens, ends = tokens[:, :length].to(device), ends.to(device)
    dtype = model.token_embedding.weight.dtype
    x = model.token_embedding(tokens) + model.positional_embedding[:length].to(dtype)
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x), device=device), ends]
    projection = model.text_projection
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def _is_causal(model: Any) -> bool:
    """Whether this is CLIP's own text tower, read at its end-of-text token."""
    return getattr(model, "text_pool_type", None) == "argmax" and getattr(model, "attn_mask", None) is not None


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
    sentences = [t.replace("{}", p) for p in prompts for t in templates]
    _warn_of_long(tokenizer, prompts, templates)
    features = [
        F.normalize(
            encode_sentences(model, tokenizer(sentences[i : i + SENTENCES_A_BATCH])).float(),
            dim=-1,
        )
        for i in range(0, len(sentences), SENTENCES_A_BATCH)
    ]
    return F.normalize(torch.cat(features).unflatten(0, (len(prompts), len(templates))).mean(dim=1), dim=-1)


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
