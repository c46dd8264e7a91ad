"""Agreement with the published CLIP Surgery code, from the figures in tests/golden alone."""

import json
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as PILImage

from clip2sam.clip import CLIP_SURGERY, RAW_CLIP, dense_features, encode_prompts
from clip2sam.clip.surgery import dense_grid
from clip2sam.points import pixel_indices, pool_grid, select_points
from clip2sam.similarity import feature_surgery, resize_maps, score_maps

GOLDEN = Path(__file__).parent / "golden"
CASES = ("vit16_224", "vit16_512", "rn_224")
STAGES = ("dense", "text", "empty", "similarity", "similarity_single")


def seeded_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor of a case's model, drawn from its name and a seed; see golden/README.md."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    normal = generator.standard_normal(shape).astype(np.float32)
    owner, _, kind = name.rpartition(".")
    layer = owner.rpartition(".")[2]
    is_norm = "ln_" in owner or "bn" in owner or owner.endswith(("downsample.1", "downsample.2"))
    if kind == "logit_scale":
        return np.full(shape, np.log(1 / 0.07), np.float32)
    if kind == "running_var":
        return 1 + 0.1 * np.abs(normal)
    if kind == "weight" and is_norm:
        return 1 + 0.1 * normal
    if kind in ("positional_embedding", "class_embedding"):
        return 0.3 * normal
    if layer == "token_embedding":
        return 0.02 * normal
    if len(shape) < 2 or kind == "bias":
        return 0.1 * normal
    fan_in = shape[0] if kind in ("proj", "text_projection") else int(np.prod(shape[1:]))
    return normal * np.float32(1.5 / np.sqrt(fan_in))


def seeded_clip(config: dict, seed: int) -> open_clip.CLIP:
    """The CLIP of a case; `config` has the arguments of OpenAI's `CLIP` class."""
    layers = config["vision_layers"]
    vision = {
        "image_size": config["image_resolution"],
        "layers": tuple(layers) if isinstance(layers, list) else layers,
        "width": config["vision_width"],
        "patch_size": config["vision_patch_size"] or 16,
    }
    text = {
        "context_length": config["context_length"],
        "vocab_size": config["vocab_size"],
        "width": config["transformer_width"],
        "heads": config["transformer_heads"],
        "layers": config["transformer_layers"],
    }
    model = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=True).eval()
    weights = {
        name: torch.from_numpy(seeded_weight(name, tuple(tensor.shape), seed))
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and name != "attn_mask"
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith(("num_batches_tracked", "attn_mask")) for name in missing)
    return model


class Case:
    """One golden case: its model and input, and what the published code returned."""

    def __init__(self, name: str) -> None:
        about = json.loads((GOLDEN / f"{name}.json").read_text())
        self.expected = dict(np.load(GOLDEN / f"{name}.npz"))
        self.model = seeded_clip(about["config"], about["seed"])
        self.labels = about["labels"]
        self.steps = about["steps"]
        with PILImage.open(GOLDEN / f"{name}.webp") as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
        self.input = ((pixels - mean) / std)[None]

    def relative_error(self, name: str, ours: torch.Tensor) -> float:
        """Of what is stored: every `steps[name]`-th token (by default every one), every channel."""
        theirs = torch.from_numpy(self.expected[name])
        ours = ours[:: self.steps.get(name, 1)]
        assert ours.shape == theirs.shape
        return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
@torch.no_grad()
def computed(case) -> dict[str, torch.Tensor]:
    tokenizer = open_clip.SimpleTokenizer()
    dense, grid = dense_grid(case.model.visual, case.input, CLIP_SURGERY)
    text = encode_prompts(case.model, tokenizer, case.labels)
    empty = encode_prompts(case.model, tokenizer, [""])
    unit = torch.nn.functional.normalize(dense, dim=-1)
    similarity = feature_surgery(unit, text)
    return {
        "maps": score_maps(similarity, *grid),
        "dense": dense[0],
        "text": text,
        "empty": empty,
        "similarity": similarity[0],
        "similarity_single": feature_surgery(unit, text[:1], empty)[0],
    }


def test_the_figures_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) <= 1_000_000


@pytest.mark.parametrize("stage", STAGES)
def test_stage_agrees_with_the_published_code(case, computed, stage):
    assert case.relative_error(stage, computed[stage]) < 1e-5


@torch.no_grad()
def test_raw_method_is_the_model_itself(case):
    raw = dense_features(case.model.visual, case.input, RAW_CLIP)[0]
    if case.input.shape[-1] == 224:
        own = case.model.encode_image(case.input)[0]
        assert float((raw[0] - own).norm() / own.norm()) < 1e-5
        assert case.relative_error("raw_image", raw) < 1e-5
    else:  # unmodified CLIP takes its native size only
        assert "raw_image" not in case.expected
        assert torch.isfinite(raw).all()


def test_maps_agree(case, computed):
    names = [name for name in case.expected if name.startswith("map_")]
    assert names
    for name in names:
        theirs, step = torch.from_numpy(case.expected[name]), case.steps[name]
        height, width = map(int, name.removeprefix("map_").split("x"))
        ours = resize_maps(computed["maps"][0], (height, width)).permute(1, 2, 0)[::step, ::step]
        assert ours.shape == theirs.shape
        tolerance = 1e-4 if theirs.dtype == torch.float32 else 1e-3
        assert float((ours - theirs.float()).abs().max()) < tolerance


def test_points_are_the_same_integers(case, computed):
    grids = pool_grid(computed["maps"], "half")
    names = [name for name in case.expected if name.startswith("points_")]
    assert len(names) >= 2 * len(case.labels)
    for name in names:
        _, label, shape, threshold = name.split("_")
        height, width = map(int, shape.split("x"))
        coords, kinds = select_points(grids, ((height, width),), float(threshold[1:]))
        ours = torch.cat([pixel_indices(coords), kinds[..., None]], dim=-1)[0, int(label)]
        ours = ours[kinds[0, int(label)] >= 0].numpy()
        np.testing.assert_array_equal(ours, case.expected[name], err_msg=name)


@torch.no_grad()
def test_the_positional_embedding_stays_as_it_was(case):
    owner = getattr(case.model.visual, "attnpool", case.model.visual)
    before = owner.positional_embedding.clone()
    dense_features(case.model.visual, torch.randn(2, 3, 288, 352), CLIP_SURGERY)
    assert torch.equal(owner.positional_embedding, before)
