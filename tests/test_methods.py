"""Every method against its papers' formulas, written out here in plain loops.

Nothing of the package helps the references: they read a model's weights by name and compute in
float64, one image and one head at a time.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from clip2sam.candidates import agreement, as_rule
from clip2sam.clip import (
    CLEARCLIP,
    CLIP_SURGERY,
    GEM,
    MASKCLIP,
    METHODS,
    NACLIP,
    RAW_CLIP,
    SCLIP,
    Method,
    SurgeryCLIP,
    dense_features,
)
from clip2sam.clip.methods import gaussian
from clip2sam.config import Config, published
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.data.presence import is_present, recorded_presence
from clip2sam.errors import ConfigError
from clip2sam.points import pool_grid, select_points
from clip2sam.result import as_result
from clip2sam.sam import PromptSAM
from clip2sam.similarity import feature_surgery
from clip2sam.types import Candidates, Masks, Prediction, Prompts, SimilarityMaps
from tests.models import small_clip, small_sam

LAYERS = 8  # more than surgery's six blocks, so that a seventh would be seen


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in model.visual.state_dict().items()}


def uneven(model):
    """Biases and norms away from 0 and 1: leaving one of them out is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return uneven(small_clip(layers=LAYERS))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return uneven(small_clip(vision_layers=(1, 1, 1, 1)))


# A transformer block, part by part. Tokens are rows.


def norm(x, weights, name):
    mean = x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(((x - mean) ** 2).mean(axis=1, keepdims=True) + 1e-5)
    return (x - mean) / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(x):
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def attention(a, b, v, heads, bias=0.0):
    """softmax(a b^T / sqrt(d)) v, head by head."""
    dim = v.shape[1] // heads
    out = []
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        logits = a[:, part] @ b[:, part].T / math.sqrt(dim) + bias
        out.append(softmax(logits) @ v[:, part])
    return np.concatenate(out, axis=1)


class Block:
    """One block of a ViT by its weights alone."""

    heads = 2

    def __init__(self, weights, index):
        start = f"transformer.resblocks.{index}."
        self.weights = {k.removeprefix(start): w for k, w in weights.items() if k.startswith(start)}

    def qkv(self, x):
        w = self.weights
        joined = norm(x, w, "ln_1") @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
        return np.split(joined, 3, axis=1)

    def out(self, x):
        return x @ self.weights["attn.out_proj.weight"].T + self.weights["attn.out_proj.bias"]

    def feed_forward(self, x):
        w = self.weights
        hidden = norm(x, w, "ln_2") @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        hidden = hidden / (1 + np.exp(-1.702 * hidden))  # QuickGELU
        return hidden @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]

    def clip(self, x):
        """The block as trained."""
        q, k, v = self.qkv(x)
        x = x + self.out(attention(q, k, v, self.heads))
        return x + self.feed_forward(x)


def resized(grid, rows, cols):
    """(side, side, width) to (rows, cols, width), bilinearly, without antialiasing."""
    side = len(grid)
    out = np.zeros((rows, cols, grid.shape[2]))
    for i in range(rows):
        for j in range(cols):
            y = min(max((i + 0.5) * side / rows - 0.5, 0), side - 1)
            x = min(max((j + 0.5) * side / cols - 0.5, 0), side - 1)
            top, left = min(int(y), side - 2), min(int(x), side - 2)
            down, right = y - top, x - left
            out[i, j] = (1 - down) * (
                (1 - right) * grid[top, left] + right * grid[top, left + 1]
            ) + down * ((1 - right) * grid[top + 1, left] + right * grid[top + 1, left + 1])
    return out


def with_positions(tokens, positions, rows, cols):
    side = math.isqrt(len(positions) - 1)
    grid = resized(positions[1:].reshape(side, side, -1), rows, cols)
    return tokens + np.concatenate([positions[:1], grid.reshape(rows * cols, -1)])


def embedded(weights, pixels):
    """Tokens (1 + patches, width) before the first block."""
    kernel = weights["conv1.weight"]
    size = kernel.shape[-1]
    rows, cols = pixels.shape[1] // size, pixels.shape[2] // size
    tokens = [weights["class_embedding"]]
    for i in range(rows):
        for j in range(cols):
            patch = pixels[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
            tokens.append((kernel * patch).sum(axis=(1, 2, 3)))
    tokens = with_positions(np.array(tokens), weights["positional_embedding"], rows, cols)
    return norm(tokens, weights, "ln_pre")


# The methods: from the tokens before the first block to the patches after the last one.


def raw_clip(blocks, x):
    for block in blocks:
        x = block.clip(x)
    return x


def maskclip(blocks, x):
    """Zhou et al., 2022: in the last block every token's attention is its own value."""
    *others, last = blocks
    x = raw_clip(others, x)
    _, _, v = last.qkv(x)
    x = x + last.out(v)
    return x + last.feed_forward(x)


def clip_surgery(blocks, x):
    """Li et al., 2023: from the sixth last block on, a path that adds value-value attention of
    CLIP's own stream and has no feed-forward layers."""
    x = raw_clip(blocks[:-6], x)
    new = x
    for block in blocks[-6:]:
        _, _, v = block.qkv(x)
        new = new + block.out(attention(v, v, v, block.heads))
        x = block.clip(x)
    return new


def clearclip(blocks, x):
    """Lan et al., 2024: the last block is its query-query attention alone."""
    *others, last = blocks
    q, _, v = last.qkv(raw_clip(others, x))
    return last.out(attention(q, q, v, last.heads))


def sclip(blocks, x):
    """Wang et al., 2023: in the last block query-query plus key-key attention."""
    *others, last = blocks
    x = raw_clip(others, x)
    q, k, v = last.qkv(x)
    x = x + last.out(attention(q, q, v, last.heads) + attention(k, k, v, last.heads))
    return x + last.feed_forward(x)


def neighbourhood(rows, cols):
    """NACLIP's Gaussian, of standard deviation 5, by each patch's coordinates; none for CLS."""
    bias = np.zeros((1 + rows * cols, 1 + rows * cols))
    for query in range(rows * cols):
        for key in range(rows * cols):
            down, right = query // cols - key // cols, query % cols - key % cols
            bias[1 + query, 1 + key] = math.exp(-(down**2 + right**2) / (2 * 5**2))
    return bias


def naclip(blocks, x, grid):
    """Hajimiri et al., 2024: key-key attention with the Gaussian in its logits, alone in the last
    block."""
    *others, last = blocks
    _, k, v = last.qkv(raw_clip(others, x))
    return last.out(attention(k, k, v, last.heads, neighbourhood(*grid)))


def gem(blocks, x, iterations=1):
    """Bousselham et al., 2023: surgery's path; one attention a projection, their mean."""
    x = raw_clip(blocks[:-6], x)
    new = x
    for block in blocks[-6:]:
        new = new + block.out(ensemble(block, x, iterations))
        x = block.clip(x)
    return new


def ensemble(block, x, iterations):
    """With unit vectors p and temperature t: p becomes softmax(p p^T / t) p, so many times; then
    the attention is softmax(p p^T / t) v."""
    lengths = [math.sqrt((token**2).sum()) for token in norm(x, block.weights, "ln_1")]
    dim = x.shape[1] // block.heads
    temperature = math.sqrt(dim) / (sum(lengths) / len(lengths))
    *_, v = projections = block.qkv(x)
    mixed = np.zeros_like(v)
    for head in range(block.heads):
        part = slice(head * dim, (head + 1) * dim)
        for vectors in projections:
            p = normalised(vectors[:, part])
            for _ in range(iterations):
                p = normalised(softmax(p @ p.T / temperature) @ p)
            mixed[:, part] += softmax(p @ p.T / temperature) @ v[:, part] / 3
    return mixed


def normalised(x):
    return x / np.sqrt((x**2).sum(axis=1, keepdims=True))


def key_key(blocks, x):
    *others, last = blocks
    x = raw_clip(others, x)
    _, k, v = last.qkv(x)
    return x + last.out(attention(k, k, v, last.heads))


REFERENCES = [
    (RAW_CLIP, raw_clip),
    (MASKCLIP, maskclip),
    (CLIP_SURGERY, clip_surgery),
    (CLEARCLIP, clearclip),
    (SCLIP, sclip),
    (NACLIP, naclip),
    (GEM, gem),
    (replace(GEM, name="gem 0", iterations=0), partial(gem, iterations=0)),
    (replace(GEM, name="gem 3", iterations=3), partial(gem, iterations=3)),
    (Method("kk", "kk", 1, residual=True, feed_forward=False), key_key),
]


def reference(model, pixels, method):
    """Dense features by a method: CLS from CLIP itself, ln_post, projection."""
    weights = weights_of(model)
    blocks = [Block(weights, i) for i in range(len(model.visual.transformer.resblocks))]
    x = embedded(weights, pixels.double().numpy())
    side = weights["conv1.weight"].shape[-1]
    grid = (pixels.shape[1] // side, pixels.shape[2] // side)
    new = method(blocks, x, grid) if method is naclip else method(blocks, x)
    tokens = np.concatenate([raw_clip(blocks, x)[:1], new[1:]])
    return norm(tokens, weights, "ln_post") @ weights["proj"]


def assert_close(ours, theirs):
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 1e-5, f"relative error {error:.2g}"


def test_the_records():
    """What the papers say, as data."""
    fields = {
        name: (m.attention, m.blocks, m.residual, m.feed_forward, m.prior, m.iterations)
        for name, m in METHODS.items()
    }
    assert fields == {
        "raw": ("qk", 0, True, True, None, 1),
        "maskclip": ("identity", 1, True, True, None, 1),
        "surgery": ("vv", 6, True, False, None, 1),
        "clearclip": ("qq", 1, False, False, None, 1),
        "sclip": ("qq+kk", 1, True, True, None, 1),
        "naclip": ("kk", 1, False, False, gaussian, 1),
        "gem": ("self-self", 6, True, False, None, 1),
    }
    assert Config().method is CLIP_SURGERY


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (96, 96)])
@pytest.mark.parametrize(
    ("method", "by_hand"), REFERENCES, ids=lambda m: getattr(m, "name", "by hand")
)
def test_a_vit_follows_the_paper(vit, method, by_hand, size):
    pixels = torch.randn(2, 3, *size)
    ours = dense_features(vit.visual, pixels, method).numpy()
    for image, tokens in zip(pixels, ours, strict=True):
        assert_close(tokens, reference(vit, image, by_hand))


@pytest.mark.parametrize("change", [{"blocks": 5}, {"blocks": 7}, {"residual": False}])
def test_the_references_tell_neighbours_apart(vit, change):
    """A method that differs in one field is further away than rounding."""
    fields = {"attention": "vv", "blocks": 6, "residual": True, "feed_forward": False} | change
    pixels = torch.randn(1, 3, 64, 64)
    other = dense_features(vit.visual, pixels, Method("other", **fields))[0].numpy()
    expected = reference(vit, pixels[0], clip_surgery)
    assert np.linalg.norm(other - expected) / np.linalg.norm(expected) > 0.01


def test_fewer_blocks_than_the_method_has():
    """Then the new path starts at the first block."""
    shallow = uneven(small_clip(layers=4))
    pixels = torch.randn(1, 3, 64, 64)
    ours = dense_features(shallow.visual, pixels, CLIP_SURGERY)[0].numpy()
    assert_close(ours, reference(shallow, pixels[0], clip_surgery))


@pytest.mark.parametrize("factor", [0, 0.3, 1, 2.5])
def test_the_residual_is_a_factor(vit, factor):
    """On what a block of the new path gets, not on what it adds; in every one of them."""

    def by_hand(blocks, x):
        x = raw_clip(blocks[:-6], x)
        new = x
        for block in blocks[-6:]:
            _, _, v = block.qkv(x)
            new = factor * new + block.out(attention(v, v, v, block.heads))
            x = block.clip(x)
        return new

    pixels = torch.randn(1, 3, 64, 64)
    ours = dense_features(vit.visual, pixels, replace(CLIP_SURGERY, residual=factor))[0].numpy()
    assert_close(ours, reference(vit, pixels[0], by_hand))


def test_clearclips_alpha_is_one_over_the_factor(vit):
    """Lan et al. scale the attention's output; the last norm makes it the same."""
    alpha = 4.0

    def by_hand(blocks, x):
        *others, last = blocks
        x = raw_clip(others, x)
        q, _, v = last.qkv(x)
        return x + alpha * last.out(attention(q, q, v, last.heads))

    pixels = torch.randn(1, 3, 64, 64)
    ours = dense_features(vit.visual, pixels, replace(CLEARCLIP, residual=1 / alpha))[0].numpy()
    assert_close(ours, reference(vit, pixels[0], by_hand))


def test_true_and_false_are_one_and_zero():
    assert replace(CLEARCLIP, residual=0) == CLEARCLIP
    assert replace(CLIP_SURGERY, residual=1.0) == CLIP_SURGERY
    assert type(replace(CLEARCLIP, residual=np.float64(0.5)).residual) is float


def pool_by_hand(model, pixels, method):
    """A ResNet's attention pool with every token kept."""
    visual, weights = model.visual, weights_of(model)
    with torch.no_grad():
        x = visual.stem(pixels[None])
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))[0].double().numpy()
    rows, cols = x.shape[1:]
    tokens = x.reshape(len(x), rows * cols).T
    tokens = np.concatenate([tokens.mean(axis=0, keepdims=True), tokens])
    positions = weights["attnpool.positional_embedding"]
    if method != "maskclip":  # Zhou et al. have none
        tokens = with_positions(tokens, positions, rows, cols)
    q, k, v, c = (
        (weights[f"attnpool.{p}_proj.weight"], weights[f"attnpool.{p}_proj.bias"]) for p in "qkvc"
    )
    q, k, v = (tokens @ weight.T + bias for weight, bias in (q, k, v))
    heads = visual.attnpool.num_heads
    mixed = {
        "raw": lambda: attention(q, k, v, heads),
        "maskclip": lambda: v,
        "surgery": lambda: attention(v, v, v, heads),
        "clearclip": lambda: attention(q, q, v, heads),
        "sclip": lambda: attention(q, q, v, heads) + attention(k, k, v, heads),
        "naclip": lambda: attention(k, k, v, heads, neighbourhood(rows, cols)),
    }[method]()
    return mixed @ c[0].T + c[1]


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
@pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m is not GEM], ids=lambda m: m.name
)
def test_a_resnet_has_it_in_the_attention_pool(resnet, method, size):
    pixels = torch.randn(2, 3, *size)
    ours = dense_features(resnet.visual, pixels, method).numpy()
    for image, tokens in zip(pixels, ours, strict=True):
        assert_close(tokens, pool_by_hand(resnet, image, method.name))


def test_gem_is_not_for_resnets(resnet):
    with pytest.raises(ConfigError, match=r"^gem isn't defined for a ResNet.*; use surgery, or"):
        dense_features(resnet.visual, torch.randn(1, 3, 64, 64), GEM)


def nearness(rows, cols):
    """A prior that differs by direction: high where the key lies right of the query."""
    columns = torch.arange(rows * cols) % cols
    return (columns[None, :] - columns[:, None]).float()


def test_a_prior_is_added_to_the_logits_of_patches(vit):
    """Query first; the CLS token has none; the original path has none."""
    pixels = torch.randn(1, 3, 48, 80)

    def by_hand(blocks, x):
        *others, last = blocks
        q, _, v = last.qkv(raw_clip(others, x))
        bias = np.zeros((len(x), len(x)))
        for query in range(15):
            for key in range(15):
                bias[1 + query, 1 + key] = key % 5 - query % 5
        return last.out(attention(q, q, v, last.heads, bias))

    method = Method("own", "qq", 1, residual=False, feed_forward=False, prior=nearness)
    ours = dense_features(vit.visual, pixels, method)[0].numpy()
    assert_close(ours, reference(vit, pixels[0], by_hand))


def test_an_attention_of_ones_own(vit):
    """A function takes the place of a name; here ClearCLIP's attention, written by its user."""

    def query_query(q, k, v, bias):
        assert bias is None
        return (q @ q.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v

    pixels = torch.randn(1, 3, 64, 64)
    method = Method("own", query_query, 1, residual=False, feed_forward=False)
    ours = dense_features(vit.visual, pixels, method)[0].numpy()
    assert_close(ours, reference(vit, pixels[0], clearclip))


# Preprocessing


@pytest.mark.parametrize("size", [(37, 91), (200, 120), (64, 64)])
@pytest.mark.parametrize("filter_name", ["bicubic", "bilinear"])
def test_preprocessing_is_open_clips_own(size, filter_name):
    model = small_clip()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.75)
    own = {"mean": mean, "std": std, "interpolation": filter_name}
    open_clip.model.set_model_preprocess_cfg(model, own)
    assert_preprocessed_alike(model, size, mean, std, filter_name)


def test_preprocessing_without_settings_is_openais():
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    assert_preprocessed_alike(small_clip(), (37, 91), mean, std, "bicubic")


def assert_preprocessed_alike(model, size, mean, std, filter_name):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    transform = open_clip.image_transform(
        48, is_train=False, mean=mean, std=std, resize_mode="squash", interpolation=filter_name
    )
    clip = SurgeryCLIP(model, resolution=48)
    ours = clip.preprocess([clip.resize(Image(pixels, "array"))])[0]
    torch.testing.assert_close(ours, transform(PILImage.fromarray(pixels)), rtol=0, atol=1e-6)


# The adapter


def test_tokens_are_unit_features(vit):
    pixels = torch.randn(2, 3, 48, 80)
    tokens, grid = SurgeryCLIP(vit).encode_image(pixels, CLEARCLIP)
    dense = dense_features(vit.visual, pixels, CLEARCLIP)
    assert grid == (3, 5)
    torch.testing.assert_close(tokens, dense / (dense**2).sum(dim=-1, keepdim=True).sqrt())


def test_text_features_follow_their_templates(vit):
    """Also when the same prompt was encoded in other templates before."""
    texts, templates = ["cat", "dog"], ("two {}s.",)
    clip = SurgeryCLIP(vit)
    published_ones = clip.encode_texts(texts)
    ours = clip.encode_texts(texts, templates)
    torch.testing.assert_close(ours, SurgeryCLIP(vit).encode_texts(texts, templates))
    assert not torch.allclose(ours, published_ones, atol=1e-3)
    assert torch.equal(clip.encode_texts(texts), published_ones)


# Feature surgery


def surgery_as_published(tokens, text, redundant=None):
    """The published tensor (tokens, labels, channels), for one image."""
    prob = text @ tokens[0]
    prob = np.exp(2 * prob) / np.exp(2 * prob).sum()
    weights = prob / prob.mean()
    scores = np.zeros((len(tokens), len(text)))
    for n, token in enumerate(tokens):
        if redundant is not None:
            products = [token * (label - redundant[0]) for label in text]
        else:
            products = [token * label * w for label, w in zip(text, weights, strict=True)]
            products = np.array(products) - np.mean(products, axis=0)
        scores[n] = [product.sum() for product in products]
    return scores


def unit(*shape):
    rows = torch.randn(*shape)
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("alone", [False, True])
def test_feature_surgery_is_the_published_tensor(alone):
    tokens, text = unit(2, 10, 16), unit(1 if alone else 4, 16)
    empty = unit(1, 16) if alone else None
    ours = feature_surgery(tokens, text, empty)
    for image, scores in zip(tokens, ours, strict=True):
        redundant = None if empty is None else empty.double().numpy()
        expected = surgery_as_published(image.double().numpy(), text.double().numpy(), redundant)
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


# Presence

NAN = float("nan")
PRESENCE = [  # score, beaten by a distractor, threshold (NaN: no decision), present
    (0.2, False, 0.1, True),
    (0.1, False, 0.1, True),
    (0.0999, False, 0.1, False),
    (0.2, True, 0.1, False),
    (0.2, True, NAN, True),
    (-5.0, False, NAN, True),
    (NAN, False, NAN, False),
    (NAN, False, 0.1, False),
]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_the_presence_decision(kind):
    scores, beaten, thresholds, present = map(kind, zip(*PRESENCE, strict=True))
    assert is_present(scores, beaten, thresholds).tolist() == present.tolist()


def test_the_presence_decision_of_a_record():
    """None stands for NaN; in float32 a recorded 0.1 reaches 0.1."""
    scores, beaten, thresholds, present = zip(*PRESENCE, strict=True)
    scores, thresholds = ([None if x != x else x for x in row] for row in (scores, thresholds))
    assert recorded_presence(scores, beaten, thresholds).tolist() == list(present)
    nearly = float(np.nextafter(np.float32(0.1), np.float32(0)))
    assert recorded_presence([nearly], [False], [0.1]).tolist() == [False]


# Grid and points


def scaled(grid):
    return (grid - grid.min()) / (grid.max() - grid.min())


def half_by_hand(grid):
    """Half of each side by bilinear resizing: each output cell mixes four input cells."""
    rows, cols = grid.shape[0] // 2, grid.shape[1] // 2
    out = np.zeros((rows, cols))
    for i in range(rows):
        for j in range(cols):
            y = (i + 0.5) * grid.shape[0] / rows - 0.5
            x = (j + 0.5) * grid.shape[1] / cols - 0.5
            top, left = int(y), int(x)
            for row, share in ((top, 1 - (y - top)), (top + 1, y - top)):
                for col, part in ((left, 1 - (x - left)), (left + 1, x - left)):
                    out[i, j] += share * part * grid[row, col]
    return out


def area_by_hand(grid, cells):
    """The mean of the map's cells that a grid's cell touches."""
    rows, cols = grid.shape
    out = np.zeros((cells, cells))
    for i in range(cells):
        for j in range(cells):
            top, bottom = i * rows // cells, math.ceil((i + 1) * rows / cells)
            left, right = j * cols // cells, math.ceil((j + 1) * cols / cells)
            out[i, j] = grid[top:bottom, left:right].mean()
    return out


@pytest.mark.parametrize("shape", [(14, 14), (15, 14), (32, 32), (9, 21)])
def test_the_grid_by_hand(shape):
    maps = torch.randn(2, 3, *shape, dtype=torch.float64)
    half, seven = pool_grid(maps, "half"), pool_grid(maps, 7)
    assert torch.equal(pool_grid(maps), seven)
    assert Config().grid == 7
    for image in range(2):
        for label in range(3):
            one = maps[image, label].numpy()
            np.testing.assert_allclose(half[image, label], scaled(half_by_hand(one)), atol=1e-12)
            np.testing.assert_allclose(seven[image, label], scaled(area_by_hand(one, 7)), atol=1e-6)


def points_by_hand(grid, size, threshold):
    """The published selection; equal cells rank by their place, row by row."""
    rows, cols = grid.shape
    cells = grid.reshape(-1)
    rank = sorted(range(len(cells)), key=lambda cell: (cells[cell], cell))
    count = min(sum(value >= threshold for value in cells), len(cells) // 2)
    chosen = [(cell, 1) for cell in rank[len(rank) - count :]]
    chosen += [(cell, 0) for cell in rank[:count]]
    height, width = size
    return [
        ((cell % cols + 0.5) * width / cols, (cell // cols + 0.5) * height / rows, kind)
        for cell, kind in chosen
    ]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(2, 8),
    cols=st.integers(2, 8),
    levels=st.integers(2, 60),  # few levels: many ties
    threshold=st.sampled_from([0.05, 0.5, 0.6, 0.8, 1.0]),
    sizes=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=2, max_size=2),
    seed=st.integers(0, 10**6),
)
def test_points_by_hand(rows, cols, levels, threshold, sizes, seed):
    values = np.random.default_rng(seed).integers(0, levels, (2, 3, rows, cols)).astype(np.float32)
    values /= levels - 1
    coords, kinds = select_points(torch.from_numpy(values), tuple(sizes), threshold)
    for image, size in enumerate(sizes):
        for label in range(3):
            expected = points_by_hand(values[image, label], size, np.float32(threshold))
            used = kinds[image, label] >= 0
            ours = torch.cat([coords[image, label], kinds[image, label][:, None]], dim=1)[used]
            np.testing.assert_allclose(
                ours.numpy(), np.reshape(expected, (-1, 3)), rtol=1e-6, atol=1e-6
            )


# The candidate that is kept


def test_agreement_by_hand():
    """A soft IoU of coverage and map: the sum of minima over the sum of maxima."""
    coverage, maps = torch.rand(2, 3, 4, 5), torch.randn(2, 4, 5)
    ours = agreement(coverage, maps)
    for prompt in range(2):
        heat = scaled(maps[prompt].numpy())
        for candidate in range(3):
            covered = coverage[prompt, candidate].numpy()
            expected = np.minimum(covered, heat).sum() / np.maximum(covered, heat).sum()
            assert float(ours[prompt, candidate]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (Config(), 2),
        (Config(candidate="both"), 2),
        (Config(candidate="agreement"), 0),
        (Config(candidate="predicted_iou"), 1),
        (published(), 1),
        (Config(candidate=lambda candidates, agreement: agreement * 0 + torch.eye(4)[3]), 3),
    ],
)
def test_each_rule_keeps_another_candidate(config, kept):
    predicted_iou, agrees = torch.tensor([[0.1, 0.9, 0.7, 0.2]]), torch.tensor([[0.9, 0.1, 0.7, 0]])
    candidates = Candidates(torch.zeros(1, 4, 8, 8), predicted_iou)
    quality = as_rule(config.candidate)(candidates, agrees)
    assert quality.argmax(dim=-1).tolist() == [kept]


# From masks to a record


def test_boxes_and_empty_masks():
    """A mask off the origin and off the diagonal: 32 pixels wide, 16 high; one without a pixel."""
    sam = PromptSAM(small_sam())  # its input is 128 pixels, its logits a quarter of that
    logits = torch.full((3, 32, 32), -10.0)
    logits[1, 8:12, 20:28] = 10.0
    logits[2, :, 0] = 10.0
    labels = as_label_set(["cat", "dog"])
    sizes, counts = ((128, 128), (128, 128)), (2, 1)
    maps = SimilarityMaps(
        raw=torch.rand(2, 2, 8, 8),
        presence=torch.full((2, 2), 0.5),
        beaten=torch.zeros(2, 2, dtype=torch.bool),
        present=torch.tensor([[True, True], [False, True]]),
        labels=labels,
        sizes=sizes,
    )
    which, iou = torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.2, 0.3])
    prompts = Prompts(torch.ones(3, 1, 2), torch.ones(3, 1, dtype=torch.long), which, counts, sizes)
    masks = Masks(logits, iou, iou, which, iou, iou, iou, iou > -1, which, counts, sizes)
    image = Image(np.zeros((128, 128, 3), np.uint8), "array")
    prediction = Prediction(maps, prompts, masks)
    results = [as_result(image, prediction, i, Config(), sam) for i in range(2)]
    assert [result.labels for result in results] == [["dog"], ["dog"]]
    assert [result.scores.tolist() for result in results] == [[np.float32(0.2)], [np.float32(0.3)]]
    assert results[0].boxes.tolist() == [[80, 32, 112, 48]]
    assert results[1].boxes.tolist() == [[0, 0, 4, 128]]
    (mask,) = results[0].masks
    assert mask[34:46, 82:110].all()  # bilinear resizing takes the corners off
    assert mask.sum() == mask[32:48, 80:112].sum()
    (absent,) = results[0].absent
    assert (absent.label, absent.reason) == ("cat", "its points gave an empty mask")
    (row,) = results[0].to_coco()["annotations"]
    assert (row["bbox"], row["area"]) == ([80, 32, 32, 16], mask.sum())
