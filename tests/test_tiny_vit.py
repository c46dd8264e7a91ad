"""MobileSAM's encoder gives what its published code gives, from the figures in tests/golden."""

import copy
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from clip2sam.errors import WeightsError
from clip2sam.models.checkpoints import load_sam
from clip2sam.models.sam_layout import untrained_sam
from clip2sam.sam import PromptSAM
from clip2sam.sam.tiny_vit import TinyViT, fold, published_names
from tests.models import small_sam
from tests.test_sam import embed, noise, random_prompts

GOLDEN = Path(__file__).parent / "golden"
ABOUT = json.loads((GOLDEN / "mobile_sam.json").read_text())


def seeded_weight(name: str, shape: list[int]) -> torch.Tensor:
    """One tensor of the published encoder's; see golden/README.md."""
    generator = np.random.default_rng([ABOUT["seed"], zlib.crc32(name.encode())])
    normal = generator.standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(normal)
    elif name.endswith("attention_biases"):
        value = normal
    elif len(shape) == 1:
        value = 0.1 * normal + name.endswith("weight")
    else:
        value = normal * 1.5 / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(value).float()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The encoder's seeded weights under the published names."""
    return {name: seeded_weight(name, shape) for name, shape in ABOUT["shapes"].items()}


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Noise, with padding below as an image of 1024 x 768 has it."""
    values = np.random.default_rng(ABOUT["seed"]).standard_normal((1, 3, 1024, 1024))
    values[:, :, 768:] = 0
    return torch.from_numpy(values).float()


@pytest.fixture(scope="module")
def encoder(state) -> TinyViT:
    made = TinyViT()
    made.load_state_dict(published_names(state))
    return fold(made)


def small_tiny_vit(seed=0) -> TinyViT:
    """At 128 pixels, with windows that extend beyond the image, not folded."""
    torch.manual_seed(seed)
    made = TinyViT(
        128,
        widths=(8, 16, 16, 32),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 1, 2),
        windows=(3, 7, 5, 3),
        channels=32,
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            scale = 1.0 if "biases" in name else 1.5 / parameter[0].numel() ** 0.5
            if parameter.dim() > 1:
                parameter.normal_(std=scale)
    return made


def relative_error(ours, theirs) -> float:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def test_it_agrees_with_the_published_code(encoder, pixels):
    out = encoder(pixels)[0]
    expected = np.load(GOLDEN / "mobile_sam.npz")
    assert out.shape == (256, 64, 64)
    assert relative_error(out[::8, ::6, ::6], expected["some"]) < 1e-5
    # The last column's windows extend beyond the image.
    assert relative_error(out[::8, :, -1], expected["edge"]) < 1e-5
    assert relative_error(out.mean(dim=(1, 2)), expected["mean"]) < 1e-5
    assert relative_error(out.std(dim=(1, 2), correction=0), expected["std"]) < 1e-5


def test_bf16_is_near(encoder, pixels):
    half = copy.deepcopy(encoder).bfloat16()(pixels.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), encoder(pixels)) < 0.03


def test_images_of_a_batch_do_not_mix():
    encoder, pixels = fold(small_tiny_vit()), torch.randn(3, 3, 128, 128)
    alone = torch.cat([encoder(one[None]) for one in pixels])
    torch.testing.assert_close(encoder(pixels), alone, rtol=1e-4, atol=1e-4)


def test_without_fused_operators_it_is_the_same(monkeypatch):
    encoder, pixels = fold(small_tiny_vit()), torch.randn(1, 3, 128, 128)
    fused = encoder(pixels)
    for file in ("kernels.linear", "kernels.convolution"):
        monkeypatch.setattr(f"clip2sam.{file}.on_host", lambda tensor: False)
    torch.testing.assert_close(encoder(pixels), fused, rtol=1e-4, atol=1e-4)


def mobile_state(encoder_state) -> dict[str, torch.Tensor]:
    """A checkpoint of the whole model under the published names."""
    with torch.device("meta"):
        others = untrained_sam("vit_t").state_dict()
    return {f"image_encoder.{name}": tensor for name, tensor in encoder_state.items()} | {
        name: torch.randn(tensor.shape)
        for name, tensor in others.items()
        if not name.startswith("image_encoder.")
    }


def test_the_published_checkpoint_loads(tmp_path, state, encoder, pixels):
    path, whole = tmp_path / "mobile_sam.pt", mobile_state(state)
    torch.save(whole, path)
    sam = load_sam("vit_t", path)
    assert not sam.training
    assert sam.image_encoder.img_size == 1024
    assert torch.equal(sam.image_encoder(pixels), encoder(pixels))
    assert torch.equal(sam.mask_decoder.iou_token.weight, whole["mask_decoder.iou_token.weight"])


def test_tensors_that_are_missing_are_named(tmp_path, state):
    del state["layers.2.blocks.5.attn.attention_biases"]
    torch.save(mobile_state(state), tmp_path / "mobile_sam.pt")
    with pytest.raises(WeightsError, match=r"not fit SAM vit_t; use an official .*Missing key"):
        load_sam("vit_t", tmp_path / "mobile_sam.pt")


@pytest.mark.parametrize("size", [(90, 131), (301, 64)])
def test_masks_are_those_of_a_predictor(size):
    """The whole path behind the encoder is SAM's own."""
    model = small_sam()
    model.image_encoder = fold(small_tiny_vit())
    sam, predictor, image = PromptSAM(model), SamPredictor(model), noise(*size)
    prompts = random_prompts(4, 5, size)
    found = sam.decode(embed(sam, image), prompts)
    predictor.set_image(image.pixels)
    for i, (coords, labels) in enumerate(zip(prompts.coords, prompts.point_labels, strict=True)):
        real = labels >= 0
        points = coords[real].floor().numpy(), labels[real].numpy()
        _, _, theirs = predictor.predict(*points, return_logits=True)
        torch.testing.assert_close(found.logits[i], torch.from_numpy(theirs), rtol=1e-3, atol=1e-3)
