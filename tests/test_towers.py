"""Image towers of other makes: timm's ViTs, with SigLIP's pooling head or with a CLS token.

The references read timm's weights by name and compute in float64, one head at a time.
"""

from inspect import unwrap

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel

from clip2sam.clip import (
    CLIP_SURGERY,
    GEM,
    METHODS,
    NACLIP,
    RAW_CLIP,
    SurgeryCLIP,
    dense_features,
)
from clip2sam.clip.surgery import dense_grid, grid_side
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError
from tests.models import small_clip

SIDE = 64
SIZES = {"img_size": SIDE, "embed_dim": 64, "depth": 8, "num_heads": 2}


def tower(name, pool="map", proj="none", **trunk) -> TimmModel:
    """open_clip's own tower around a small seeded trunk of timm."""
    torch.manual_seed(0)
    visual = TimmModel("test_vit", 32, image_size=SIDE, pool="token", proj=proj)
    # open_clip passes no sizes on to timm, so the trunk comes in afterwards.
    visual.trunk = timm.create_model(name, **{**SIZES, "num_classes": 0, **trunk}, global_pool=pool)
    with torch.no_grad():
        for parameter in visual.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return visual.eval()


TOWERS = {
    "SigLIP": lambda: tower("vit_base_patch16_siglip_224"),
    "CLS": lambda: tower("vit_base_patch16_clip_224", "token", "linear"),
    "registers": lambda: tower(
        "vit_base_patch16_224",
        "token",
        "linear",
        reg_tokens=2,
        init_values=0.5,
        no_embed_class=True,
    ),
}


@pytest.fixture(scope="module", params=TOWERS)
def visual(request):
    return TOWERS[request.param]()


def heads_of(x, heads):
    return x.chunk(heads, dim=-1)


def mean_of(attentions):
    return sum(attentions) / len(attentions)


def attended(logits_of, v, bias):
    return (logits_of + bias).softmax(dim=-1) @ v


def ensemble(length, q, k, v):
    """GEM's three attentions."""
    sharp = length / q.shape[-1] ** 0.5
    outs = []
    for p in (q, k, v):
        p = F.normalize(p, dim=-1)
        p = F.normalize((sharp * p @ p.T).softmax(dim=-1) @ p, dim=-1)
        outs.append((sharp * p @ p.T).softmax(dim=-1) @ v)
    return mean_of(outs)


def mixed(method, x, q, k, v, bias):
    """One head's attention in the new path."""
    scale = q.shape[-1] ** -0.5
    return {
        "raw": lambda: attended(q @ k.T * scale, v, 0),
        "maskclip": lambda: v,
        "surgery": lambda: attended(v @ v.T * scale, v, 0),
        "clearclip": lambda: attended(q @ q.T * scale, v, 0),
        "sclip": lambda: attended(q @ q.T * scale, v, 0) + attended(k @ k.T * scale, v, 0),
        "naclip": lambda: attended(k @ k.T * scale, v, bias),
        "gem": lambda: ensemble(x.norm(dim=-1).mean(), q, k, v),
    }[method]()


def neighbourhood(rows, cols, prefix):
    places = [(i, j) for i in range(rows) for j in range(cols)]
    bias = torch.zeros(prefix + len(places), prefix + len(places), dtype=torch.double)
    for a, (i, j) in enumerate(places):
        for b, (k, m) in enumerate(places):
            squared = torch.tensor(float((i - k) ** 2 + (j - m) ** 2)).double()
            bias[prefix + a, prefix + b] = torch.exp(-squared / 50)
    return bias


def block_by_hand(block, x, method, bias):
    """What the original path adds by attention, then by feed-forward, and what the new path's
    attention adds; one image's tokens."""
    normed = block.norm1(x)
    qkv = block.attn.qkv(normed).chunk(3, dim=-1)
    heads = list(zip(*(heads_of(part, block.attn.num_heads) for part in qkv), strict=True))
    old = torch.cat([mixed("raw", normed, *head, bias) for head in heads], dim=-1)
    new = torch.cat([mixed(method, normed, *head, bias) for head in heads], dim=-1)
    old, new = (block.ls1(block.attn.proj(part)) for part in (old, new))
    return old, new


def forward(block, x):
    return block.ls2(block.mlp(block.norm2(x)))


def embedded_by_hand(trunk, pixels):
    patches = F.conv2d(pixels[None], trunk.patch_embed.proj.weight, trunk.patch_embed.proj.bias, 16)
    rows, cols = patches.shape[-2:]
    patches = patches[0].flatten(1).T
    first = [token[0] for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    old = trunk.pos_embed[0]
    side = SIDE // 16
    grid = old[-(side**2) :].T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (rows, cols), mode="bilinear", align_corners=False)[0].flatten(1).T
    before = old[: -(side**2)]
    if len(before):  # the CLS token has a position, too
        first[0] = first[0] + before
    return trunk.norm_pre(torch.cat([*first, patches + grid])), (rows, cols)


BLOCKS = {"raw": 0, "surgery": 6, "gem": 6}
WITHOUT_RESIDUAL = ("clearclip", "naclip")
WITH_FEED_FORWARD = ("maskclip", "sclip")


@torch.no_grad()
def by_hand(visual, pixels, method):
    visual, pixels = visual.double(), pixels.double()
    trunk = visual.trunk
    x, grid = embedded_by_hand(trunk, pixels)
    prefix = len(x) - grid[0] * grid[1]
    bias = neighbourhood(*grid, prefix)
    split = len(trunk.blocks) - BLOCKS.get(method, 1)
    for block in trunk.blocks[:split]:
        x = x + block_by_hand(block, x, "raw", bias)[0]
        x = x + forward(block, x)
    new = x
    for block in trunk.blocks[split:]:
        old, step = block_by_hand(block, x, method, bias)
        x = x + old
        x = x + forward(block, x)
        new = step if method in WITHOUT_RESIDUAL else new + step
        if method in WITH_FEED_FORWARD:
            new = new + forward(block, new)
    x, patches = trunk.norm(x), trunk.norm(new[prefix:])
    pool = trunk.attn_pool
    if pool is None:
        return visual.head(torch.cat([x[:1], patches]))
    value = pool.kv(torch.cat([patches])).chunk(2, dim=-1)[1]
    dense = pool.proj(value)
    dense = dense + pool.mlp(pool.norm(dense))
    return torch.cat([pool(x[None]), dense])


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_timms_towers_follow_the_papers(visual, method, size):
    pixels = torch.randn(2, 3, *size)
    ours = dense_features(visual.float(), pixels, method).double()
    for image, tokens in zip(pixels, ours, strict=True):
        expected = by_hand(visual, image, method.name)
        assert tokens.shape == expected.shape == (1 + size[0] * size[1] // 256, tokens.shape[1])
        assert float((tokens - expected).norm() / expected.norm()) < 1e-5
    visual.float()


@torch.no_grad()
def test_the_first_token_is_the_towers_own_feature(visual):
    pixels = torch.randn(2, 3, SIDE, SIDE)
    for method in METHODS.values():
        first = dense_features(visual, pixels, method)[:, 0]
        torch.testing.assert_close(first, visual(pixels), rtol=1e-4, atol=1e-4)


# Where tokens are: without positions, a tower knows no place, so patches that move take their
# tokens with them.


def without_positions(visual):
    embedding = visual.trunk.pos_embed if hasattr(visual, "trunk") else visual.positional_embedding
    with torch.no_grad():
        embedding.zero_()
    return visual


PLACELESS = {**TOWERS, "CLIP": lambda: small_clip(size=SIDE).visual}


def as_patches(pixels):
    """(3, rows * 16, cols * 16) to (rows, cols, 3, 16, 16)."""
    return pixels.unflatten(1, (-1, 16)).unflatten(3, (-1, 16)).permute(1, 3, 0, 2, 4)


def as_image(patches):
    return patches.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
@pytest.mark.parametrize("name", PLACELESS)
def test_a_planted_patch_is_found_where_it_is(name, method):
    """Of a grid that isn't square. NACLIP's prior knows distances, which mirroring keeps."""
    visual = without_positions(PLACELESS[name]())
    generator = torch.Generator().manual_seed(3)
    rows, cols = 3, 5
    patches = torch.randn(rows, cols, 3, 16, 16, generator=generator)
    if method is NACLIP:
        order = torch.arange(rows * cols).reshape(rows, cols).flip(1).flatten()
    else:
        order = torch.randperm(rows * cols, generator=generator)
    moved = patches.flatten(0, 1)[order].unflatten(0, (rows, cols))
    pixels = torch.stack([as_image(patches), as_image(moved)])
    (first, second), grid = dense_grid(visual, pixels, method)
    assert grid == (rows, cols)
    torch.testing.assert_close(second[1:], first[1:][order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second[0], first[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(second[1:], first[1:], atol=1e-2)


@pytest.mark.parametrize("name", PLACELESS)
def test_a_patch_among_equal_ones_stands_out(name):
    visual = without_positions(PLACELESS[name]())
    generator = torch.Generator().manual_seed(4)
    common, other = torch.randn(2, 3, 16, 16, generator=generator)
    patches = common.expand(3, 5, 3, 16, 16).clone()
    patches[1, 3] = other
    for method in METHODS.values():
        tokens = dense_features(visual, as_image(patches)[None], method)[0, 1:]
        distances = (tokens - tokens.median(dim=0).values).norm(dim=-1)
        assert int(distances.argmax()) == 1 * 5 + 3


# The adapter


@pytest.fixture(scope="module")
def siglip():
    """open_clip's CustomTextCLIP, which has its text tower in a module of its own."""
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(
        64,
        {
            "image_size": SIDE,
            "timm_model_name": "test_vit",
            "timm_pool": "token",
            "timm_proj": "none",
        },
        {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 2},
    )
    model.visual = TOWERS["SigLIP"]()
    return model.eval()


def test_siglip_through_the_adapter(siglip):
    clip = SurgeryCLIP(siglip)
    assert (clip.resolution, clip.patches(), clip.patches(80)) == (SIDE, 4, 5)
    image = Image(torch.randint(0, 255, (40, 90, 3), dtype=torch.uint8).numpy(), "array")
    tokens, grid = clip.encode_image(clip.preprocess([clip.resize(image)]), CLIP_SURGERY)
    assert (grid, tokens.shape) == ((4, 4), (1, 17, 64))
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(1, 17))
    labels = clip.encode_labels(as_label_set(["cat", "dog"]))
    assert labels.shape == (2, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [CLIP_SURGERY, GEM, NACLIP], ids=lambda m: m.name)
def test_half_precision_is_close(dtype, method):
    pixels = torch.randn(2, 3, SIDE, SIDE)
    exact = dense_features(TOWERS["SigLIP"](), pixels, method)
    half = dense_features(TOWERS["SigLIP"]().to(dtype), pixels, method)
    assert half.dtype == dtype
    assert float(F.cosine_similarity(half.float(), exact, dim=-1).mean()) > 0.99


def test_features_have_gradients_when_asked_for():
    """The tiny CLIP is trained through them, without the decorator."""
    visual = small_clip(size=SIDE).visual
    pixels = torch.randn(1, 3, SIDE, SIDE)
    assert not dense_features(visual, pixels, CLIP_SURGERY).requires_grad
    unwrap(dense_features)(visual, pixels, CLIP_SURGERY).sum().backward()
    assert visual.conv1.weight.grad.abs().sum() > 0


# What isn't supported


def test_towers_that_differ_are_refused_with_what_to_use_instead():
    refused = {
        "whose trunk is a VisionTransformer, but this one's is a ConvNeXt": lambda: tower_of(
            timm.create_model("test_convnext", num_classes=0)
        ),
        "whose trunk is a VisionTransformer, but this one's is a Eva": lambda: tower_of(
            timm.create_model("vit_pe_core_tiny_patch16_384", depth=2)
        ),
        "whose patch embedding is a PatchEmbed, but this one's is a HybridEmbed": lambda: tower_of(
            timm.create_model("vit_base_mci_224", depth=1)
        ),
        "whose block is a Block, but this one's is a ResPostBlock": lambda: tower_of(
            timm.create_model("vit_base_patch16_rpn_224", **SIZES)
        ),
        "pools its tokens by 'avg'": lambda: tower("vit_base_patch16_224", "avg"),
        "this timm tower's has q_norm, k_norm": lambda: tower("vit_base_patch16_224", qk_norm=True),
    }
    for message, make in refused.items():
        visual = make()
        for use in (
            lambda v: dense_features(v, torch.randn(1, 3, SIDE, SIDE), RAW_CLIP),
            lambda v: grid_side(v, SIDE),
        ):
            with pytest.raises(ConfigError) as caught:
                use(visual)
            assert message in str(caught.value)
            assert str(caught.value).endswith(
                "use ViT-B-16-SigLIP or a plain CLIP such as ViT-B-16-quickgelu"
            )


def tower_of(trunk):
    visual = TimmModel("test_vit", 32, image_size=SIDE, pool="token", proj="none")
    visual.trunk = trunk
    return visual


@pytest.mark.parametrize("vision", [{"pool_type": "avg"}, {"attentional_pool": True}])
def test_open_clips_towers_that_pool_are_refused(vision):
    """As CoCa's, which have an attentional pool."""
    text = {"context_length": 77, "vocab_size": 100, "width": 32, "heads": 1, "layers": 1}
    sizes = {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    model = open_clip.CLIP(32, {**sizes, "attn_pooler_heads": 2, **vision}, text)
    with pytest.raises(ConfigError, match=r"needs a CLS token; this image tower pools its tokens"):
        dense_features(model.visual, torch.randn(1, 3, SIDE, SIDE), RAW_CLIP)
