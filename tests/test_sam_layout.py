"""Checkpoints with segment-anything's names that others trained, in the forms they come in."""

import pytest
import safetensors.torch
import torch
from segment_anything import sam_model_registry

from clip2sam.errors import WeightsError
from clip2sam.models.checkpoints import load_sam
from tests.models import small_sam


@pytest.fixture
def state(monkeypatch) -> dict[str, torch.Tensor]:
    """Weights of a small SAM, for which "vit_b" stands here."""
    monkeypatch.setitem(sam_model_registry, "vit_b", small_sam)
    return small_sam(seed=3).state_dict()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "MedSAM, published": lambda state: state,
    "MedSAM, trained": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "MedSAM, trained on several GPUs": lambda state: {
        "model": prefixed("module.", state),
        "optimizer": {"state": {}},
        "epoch": 3,
    },
    "micro-sam": lambda state: {
        "model_state": prefixed("sam.", state),
        "iteration": 250_000,
        "optimizer_state": {"state": {}},
    },
    "micro-sam, trained on several GPUs": lambda state: {
        "model_state": prefixed("module.sam.", state),
        "decoder_state": {"out_conv.weight": torch.zeros(1)},
    },
    "Lightning": lambda state: {"state_dict": prefixed("sam.", state)},
}


@pytest.mark.parametrize("form", list(FORMS))
def test_it_loads(tmp_path, state, form):
    path = tmp_path / "own.pth"
    torch.save(FORMS[form](state), path)
    loaded = load_sam("vit_b", path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_as_safetensors(tmp_path, state):
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file(prefixed("sam.", state), path)
    loaded = load_sam("vit_b", path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_the_image_encoder_alone_is_refused(tmp_path, state):
    path = tmp_path / "encoder.pth"
    torch.save({n: t for n, t in state.items() if n.startswith("image_encoder.")}, path)
    with pytest.raises(WeightsError) as caught:
        load_sam("vit_b", path)
    assert str(caught.value) == (
        f"{path} holds SAM's image_encoder alone, without prompt_encoder and mask_decoder; give a "
        "checkpoint of the whole model"
    )


class Trainer:
    """An object of a training program, which isn't unpickled."""


def test_objects_beside_the_weights_are_refused(tmp_path, state):
    path = tmp_path / "own.pth"
    torch.save({"model_state": state, "init": Trainer()}, path)
    with pytest.raises(WeightsError, match=r"it holds more than tensors.*save a state dict"):
        load_sam("vit_b", path)


@pytest.mark.parametrize(
    ("marker", "shape", "looks"),
    [
        ("image_encoder.patch_embed.proj.weight", (768, 3, 16, 16), "vit_b, .* the preset vit-b:"),
        ("image_encoder.patch_embed.proj.weight", (1024, 3, 16, 16), "vit_l, .* the preset vit-l:"),
        ("image_encoder.patch_embed.seq.0.c.weight", (32, 3, 3, 3), "vit_t, .* the preset mobile:"),
    ],
)
def test_another_architecture_is_named_with_its_preset(tmp_path, marker, shape, looks):
    path = tmp_path / "own.pth"
    content = {marker: torch.zeros(shape), "prompt_encoder.a": torch.zeros(1)}
    torch.save({"model": prefixed("module.", content | {"mask_decoder.a": torch.zeros(1)})}, path)
    with pytest.raises(WeightsError, match=f"does not fit SAM vit_h; it looks like {looks} Error"):
        load_sam("vit_h", path)
