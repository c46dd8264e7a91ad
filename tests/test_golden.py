"""What the published CLIP Surgery code computes, and what we do with the same weights."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from clip2sam.clip import CLIP_SURGERY, RAW_CLIP, dense_features, encode_prompts
from clip2sam.points import pixel_indices, pool_grid, select_points
from clip2sam.similarity import feature_surgery, resize_maps, similarity_maps

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
CASES = sorted(p.stem for p in GOLDEN.glob("*.json"))

pytestmark = pytest.mark.skipif(not CASES, reason="the golden cases are kept outside the project")


class Case:
    """One golden case: its model, with seeded weights, and what the published code returned."""

    def __init__(self, name: str) -> None:
        self.about = json.loads((GOLDEN / f"{name}.json").read_text())
        self.expected = dict(np.load(GOLDEN / f"{name}.npz"))
        config = self.about["config"]
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
        self.model = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=True).eval()
        seeded = _seeded_weights().seeded_state_dict(self.model.state_dict(), self.about["seed"])
        self.model.load_state_dict(seeded)
        self.labels = self.about["labels"]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.expected[name]).float()


def _seeded_weights():
    spec = importlib.util.spec_from_file_location("seeded_weights", GOLDEN / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def computed(case) -> dict[str, torch.Tensor]:
    tokenizer = open_clip.SimpleTokenizer()
    dense = dense_features(case.model.visual, case.tensor("input"), CLIP_SURGERY)
    text = encode_prompts(case.model, tokenizer, case.labels)
    empty = encode_prompts(case.model, tokenizer, [""])
    unit = torch.nn.functional.normalize(dense, dim=-1)
    return {
        "dense": dense,
        "text": text,
        "empty": empty,
        "similarity": feature_surgery(unit, text),
        "similarity_single": feature_surgery(unit, text[:1], empty),
    }


@torch.no_grad()
def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("stage", ["dense", "text", "empty", "similarity", "similarity_single"])
def test_stage_agrees_with_the_published_code(case, computed, stage):
    assert relative_error(computed[stage], case.tensor(stage)) < 1e-5


def test_raw_method_is_the_model_itself(case):
    if "raw_image" not in case.expected:
        pytest.skip("unmodified CLIP takes its native size only")
    raw = dense_features(case.model.visual, case.tensor("input"), RAW_CLIP)
    assert relative_error(raw, case.tensor("raw_image")) < 1e-5
    assert relative_error(raw[:, 0], case.model.encode_image(case.tensor("input"))) < 1e-5


def test_maps_agree(case, computed):
    raw = similarity_maps(computed["similarity"][0]).raw
    for height, width in case.about["shapes"]:
        theirs = case.tensor(f"map_{height}x{width}")[0]
        ours = resize_maps(raw, (height, width)).permute(1, 2, 0)
        if theirs.shape[0] != height:  # every 8th row and column of the large one, in float32
            ours = ours[::8, ::8]
        tolerance = 1e-4 if case.expected[f"map_{height}x{width}"].dtype == np.float32 else 1e-3
        assert float((ours - theirs).abs().max()) < tolerance


def test_points_are_the_same_integers(case, computed):
    grids = pool_grid(similarity_maps(computed["similarity"][0]).raw, "half")
    names = [n for n in case.expected if n.startswith("points_")]
    assert names
    for name in names:
        _, label, shape, threshold = name.split("_")
        height, width = map(int, shape.split("x"))
        coords, point_labels = select_points(grids, (height, width), float(threshold[1:]))
        chosen = point_labels[int(label)] >= 0
        ours = torch.cat([pixel_indices(coords), point_labels[..., None]], dim=-1)[int(label)][
            chosen
        ]
        np.testing.assert_array_equal(ours.numpy(), case.expected[name], err_msg=name)


def test_the_positional_embedding_stays_as_it_was(case):
    owner = getattr(case.model.visual, "attnpool", case.model.visual)
    before = owner.positional_embedding.clone()
    dense_features(case.model.visual, torch.randn(2, 3, 288, 352), CLIP_SURGERY)
    assert torch.equal(owner.positional_embedding, before)
