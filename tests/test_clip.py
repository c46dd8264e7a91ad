"""CLIP with surgery: one engine, seven methods, and a model that stays as it was."""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from clip2sam.clip import (
    CLEARCLIP,
    CLIP_SURGERY,
    MASKCLIP,
    METHODS,
    RAW_CLIP,
    SCLIP,
    Method,
    SurgeryCLIP,
    as_method,
    dense_features,
)
from clip2sam.clip.surgery import attend, dense_grid, resize_positions
from clip2sam.clip.text import TEMPLATES, encode_prompts, encode_tokens
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.errors import ConfigError
from tests import models

small_clip = partial(models.small_clip, size=64)

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return small_clip()


def by_hand(visual, pixels, *, blocks, attention, residual, feed_forward):
    """The two paths written out with nn.MultiheadAttention's own weights, softmax and all."""
    x = visual.ln_pre(
        torch.cat(
            [
                visual.class_embedding.expand(len(pixels), 1, -1),
                visual.conv1(pixels).flatten(2).transpose(1, 2),
            ],
            dim=1,
        )
        + visual.positional_embedding
    )
    all_blocks = list(visual.transformer.resblocks)
    for block in all_blocks[: len(all_blocks) - blocks]:
        x = block(x)
    new = x
    for block in all_blocks[len(all_blocks) - blocks :]:
        heads = block.attn.num_heads
        normed = block.ln_1(x)
        qkv = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        pairs = {"vv": [(v, v)], "qq": [(q, q)], "qq+kk": [(q, q), (k, k)], "identity": []}[
            attention
        ]
        mixed = (
            sum(((a @ b.mT) * a.shape[-1] ** -0.5).softmax(-1) @ v for a, b in pairs)
            if pairs
            else v
        )
        step = block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
        x = block(x)
        new = new + step if residual else step
        if feed_forward:
            new = new + block.mlp(block.ln_2(new))
    out = torch.cat([x[:, :1], new[:, 1:]], dim=1)
    return visual.ln_post(out) @ visual.proj


@pytest.mark.parametrize(
    "method",
    [CLIP_SURGERY, MASKCLIP, CLEARCLIP, SCLIP],
    ids=lambda m: m.name,
)
@torch.no_grad()
def test_methods_are_what_they_say(model, method):
    expected = by_hand(
        model.visual,
        PIXELS,
        blocks=method.blocks,
        attention=method.attention,
        residual=method.residual,
        feed_forward=method.feed_forward,
    )
    torch.testing.assert_close(
        dense_features(model.visual, PIXELS, method), expected, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_raw_clip_keeps_clips_own_image_feature(model):
    own = model.encode_image(PIXELS)
    for method in METHODS.values():
        torch.testing.assert_close(
            dense_features(model.visual, PIXELS, method)[:, 0], own, rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_the_model_is_not_changed(model):
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    before = model.encode_image(PIXELS)
    for size in (64, 96, 48):
        dense_features(model.visual, torch.randn(1, 3, size, size), CLIP_SURGERY)
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model.encode_image(PIXELS), before)


@torch.no_grad()
def test_a_batch_is_its_images(model):
    together = dense_features(model.visual, PIXELS, CLIP_SURGERY)
    alone = torch.cat([dense_features(model.visual, p[None], CLIP_SURGERY) for p in PIXELS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (48, 80), (16, 16), (70, 70)])
def test_any_size_that_holds_a_patch(model, height, width):
    tokens = dense_features(model.visual, torch.randn(1, 3, height, width), CLIP_SURGERY)
    assert tokens.shape == (1, 1 + (height // 16) * (width // 16), 32)


def test_the_grid_has_rows_and_columns(model):
    tokens, grid = dense_grid(model.visual, torch.randn(1, 3, 64, 256), CLIP_SURGERY)
    assert grid == (4, 16)
    assert tokens.shape[1] == 1 + 4 * 16


@torch.no_grad()
def test_an_attention_of_ones_own_is_used(model):
    """A function in the place of a name; q, k, v are the block's own."""

    def values(q, k, v, bias):
        assert bias is None
        return ((v @ v.mT) * v.shape[-1] ** -0.5).softmax(-1) @ v

    own = replace(CLIP_SURGERY, name="own", attention=values)
    torch.testing.assert_close(
        dense_features(model.visual, PIXELS, own),
        dense_features(model.visual, PIXELS, CLIP_SURGERY),
        rtol=1e-4,
        atol=1e-4,
    )


@torch.no_grad()
def test_a_prior_is_added_to_the_logits_of_patches(model):
    """One so strong that each patch attends to its right neighbour alone, by rows and columns."""

    def right(rows, cols):
        here = torch.arange(rows * cols)
        there = here - here % cols + (here + 1) % cols
        return 1e4 * torch.nn.functional.one_hot(there, rows * cols).float()

    visual, pixels = model.visual, torch.randn(1, 3, 32, 64)
    method = Method("right", "qk", 1, residual=False, feed_forward=False, prior=right)
    found = dense_features(visual, pixels, method)
    plain = dense_features(visual, pixels, replace(MASKCLIP, residual=False, feed_forward=False))
    patches = plain[:, 1:].unflatten(1, (2, 4)).roll(-1, dims=2).flatten(1, 2)
    torch.testing.assert_close(found[:, 1:], patches, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[:, :1], plain[:, :1], rtol=1e-4, atol=1e-4)


def test_methods_that_make_no_sense_are_refused(model):
    with pytest.raises(ConfigError, match="attention must be a function or one of qk, vv"):
        replace(CLIP_SURGERY, attention="vw")
    with pytest.raises(ConfigError, match="blocks must be a whole number of 0 or more, but got -1"):
        replace(CLIP_SURGERY, blocks=-1)
    with pytest.raises(ConfigError, match="the identity has no attention logits"):
        replace(MASKCLIP, prior=lambda rows, cols: torch.zeros(rows * cols, rows * cols))
    wrong = replace(CLIP_SURGERY, prior=lambda rows, cols: torch.zeros(3, 3))
    with pytest.raises(ConfigError, match=r"must have the shape \(16, 16\).*got \(3, 3\)"):
        dense_features(model.visual, PIXELS, wrong)


def test_fewer_blocks_than_surgery_wants():
    shallow = small_clip(layers=3)
    assert torch.isfinite(dense_features(shallow.visual, PIXELS, CLIP_SURGERY)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(model, dtype):
    half = small_clip().to(dtype)
    ours, grid = SurgeryCLIP(half).encode_image(PIXELS)
    exact, _ = SurgeryCLIP(model).encode_image(PIXELS)
    assert grid == (4, 4)
    assert ours.dtype == torch.float32
    assert float((ours * exact).sum(-1).mean()) > 0.99


def test_resnet_methods_differ_and_keep_every_token():
    resnet = small_clip(vision_layers=(1, 1, 1, 1))
    tokens = {
        m.name: dense_features(resnet.visual, PIXELS, m) for m in (RAW_CLIP, MASKCLIP, CLIP_SURGERY)
    }
    assert tokens["raw"].shape == (2, 1 + 4, 32)
    torch.testing.assert_close(
        tokens["raw"][:, 0], resnet.encode_image(PIXELS).detach(), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(tokens["raw"], tokens["surgery"], atol=1e-3)
    assert not torch.allclose(tokens["maskclip"], tokens["surgery"], atol=1e-3)


@pytest.mark.parametrize("kind", ["vv", "qq", "kk", "qk"])
def test_attend_is_softmax_attention(kind):
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    a, b = {"vv": (v, v), "qq": (q, q), "kk": (k, k), "qk": (q, k)}[kind]
    torch.testing.assert_close(attend(q, k, v, kind), ((a @ b.mT) / 2).softmax(-1) @ v)


def test_positions_are_resized_without_antialiasing():
    embedding = torch.randn(1 + 16, 3)
    assert resize_positions(embedding, 4, 4) is embedding
    halved = resize_positions(embedding, 2, 2)
    blocks = embedding[1:].reshape(2, 2, 2, 2, 3).mean(dim=(1, 3)).reshape(4, 3)
    torch.testing.assert_close(halved[1:], blocks)  # at an exact factor of two bilinear is the mean
    torch.testing.assert_close(halved[:1], embedding[:1])


def test_towers_of_another_make_are_refused(model):
    with pytest.raises(ConfigError, match=r"Linear without conv1.*use a CLIP such as"):
        dense_features(torch.nn.Linear(2, 2), PIXELS, CLIP_SURGERY)
    pooled = small_clip()
    pooled.visual.pool_type = "avg"
    with pytest.raises(ConfigError, match="CLS token"):
        dense_features(pooled.visual, PIXELS, CLIP_SURGERY)


def test_unknown_method_names_the_known_ones():
    assert as_method("clearclip") is CLEARCLIP
    with pytest.raises(
        ConfigError, match="'nonsense'; choose one of raw, maskclip, surgery, clearclip"
    ):
        as_method("nonsense")


def test_the_85_templates():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 85
    assert all(t.count("{}") == 1 for t in TEMPLATES)
    assert TEMPLATES[0] == "a bad photo of a {}."
    assert TEMPLATES[-1] == "this is one {} in the scene."


@torch.no_grad()
def test_cutting_the_context_is_exact(model):
    tokens = open_clip.tokenize(["a dog", "", "a photo of two very small traffic lights at night"])
    torch.testing.assert_close(
        encode_tokens(model, tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_what_sentences_share_is_computed_once(model, monkeypatch):
    """As a tree: twice the same sentence, one that is another's beginning, another order."""
    sentences = [
        "a photo of a dog.",
        "a photo of a cat.",
        "a photo of a dog.",
        "a photo",
        "",
        "the photo of a dog.",
    ]
    tokens, seen = open_clip.tokenize(sentences), []
    expected = model.encode_text(tokens)
    run = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda x, **kw: seen.append(x.shape[:2]) or run(x, **kw)
    )
    features = encode_tokens(model, tokens)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    # <start> a photo of a dog . <end> | cat . <end> | (a photo) <end> | (<start>) <end>
    # | the photo of a dog . <end>
    assert seen == [(1, 8 + 3 + 1 + 1 + 7)]
    torch.testing.assert_close(
        encode_tokens(model, tokens.flip(0)), features.flip(0), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_prompts_are_the_mean_of_their_sentences(model):
    templates = ("a {}.", "two {} at sea")
    sentences = F.normalize(
        model.encode_text(open_clip.tokenize(["a red kite.", "two red kite at sea"])), dim=-1
    )
    ours = encode_prompts(model, open_clip.SimpleTokenizer(), ["red kite", ""], templates)
    torch.testing.assert_close(
        ours[0], F.normalize(sentences.mean(0), dim=-1), rtol=1e-4, atol=1e-5
    )


def test_braces_in_a_label_are_just_braces(model):
    features = encode_prompts(model, open_clip.SimpleTokenizer(), ["{0}", "{x", "{}"], ("a {}.",))
    assert torch.isfinite(features).all()


def test_a_label_that_is_too_long_is_named(model):
    long = "very " * 90 + "long"
    with pytest.warns(
        UserWarning, match=r"label 'very very.*91 tokens long, but only \d+ of the model's 77"
    ):
        encode_prompts(model, open_clip.SimpleTokenizer(), ["cat", long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompts(model, open_clip.SimpleTokenizer(), ["cat"])


def label_set(**classes) -> LabelSet:
    return LabelSet(tuple(LabelClass(name, tuple(prompts)) for name, prompts in classes.items()))


def test_synonyms_are_one_class_and_text_is_encoded_once(model):
    clip = SurgeryCLIP(model)
    both = clip.encode_labels(label_set(cat=["cat", "kitten"], dog=["dog"]))
    cat, kitten, dog = clip.encode_labels(label_set(a=["cat"], b=["kitten"], c=["dog"]))
    torch.testing.assert_close(both[0], F.normalize(cat + kitten, dim=-1))
    torch.testing.assert_close(both[1], dog)
    clip.model = None  # every prompt is known by now, so the model isn't asked again
    torch.testing.assert_close(clip.encode_labels(label_set(x=["kitten"]))[0], kitten)


def test_images_are_squashed_not_cropped(model):
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, :30] = 255
    clip = SurgeryCLIP(model)
    square = clip.preprocess([clip.resize(Image(pixels, "array"))])
    bright = square[0, 0].mean(dim=0) > 0
    assert square.shape == (1, 3, 64, 64)
    assert int(bright.sum()) in (21, 22)  # a third of the width


def test_an_input_without_a_patch_is_refused(model):
    with pytest.raises(ConfigError, match="8 pixels holds no patch"):
        SurgeryCLIP(model, resolution=8)
