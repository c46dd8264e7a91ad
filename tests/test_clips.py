"""CLIPs by open_clip's names: the right file, architecture and pixels, or a clear error; and maps
of the real towers, with seeded weights, that are right.
"""

import dataclasses
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from open_clip import pretrained
from typer.testing import CliRunner

from clip2sam.cli.app import app
from clip2sam.cli.groups import LabelOptions, ModelOptions
from clip2sam.cli.presets import chosen_preset
from clip2sam.clip import CLIP_SURGERY, SurgeryCLIP
from clip2sam.clip.surgery import dense_grid
from clip2sam.config import Config
from clip2sam.data.labels import as_label_set
from clip2sam.data.network import BUNDLES
from clip2sam.errors import ConfigError, LabelError, WeightsError
from clip2sam.labelling.manifest import MANIFEST
from clip2sam.models import download
from clip2sam.models.architectures import load_tokenizer
from clip2sam.models.clips import architecture_of, clip_weights, split_clip_name, with_clip
from clip2sam.models.loading import load
from clip2sam.models.presets import HUB_FILE, PRESETS
from tests.file_server import serve
from tests.models import small_sam

OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass
class Known:
    """What must be known of a name."""

    model: str
    hub: str
    resolution: int
    patches: int
    """A side, of the model's own resolution."""
    pixels: tuple = OPENAI
    place: tuple[int, int] = (1, 3)
    """Row and column of what is planted."""


KNOWN = {
    "ViT-B-32:openai": Known(
        "ViT-B-32-quickgelu", "timm/vit_base_patch32_clip_224.openai", 224, 7, place=(0, 4)
    ),
    "ViT-B-16:openai": Known(
        "ViT-B-16-quickgelu", "timm/vit_base_patch16_clip_224.openai", 224, 14
    ),
    "ViT-L-14:openai": Known(
        "ViT-L-14-quickgelu", "timm/vit_large_patch14_clip_224.openai", 224, 16
    ),
    "ViT-L-14-336:openai": Known(
        "ViT-L-14-336-quickgelu",
        "timm/vit_large_patch14_clip_336.openai",
        336,
        24,
        place=(2, 0),
    ),
    "RN50:openai": Known("RN50-quickgelu", "timm/resnet50_clip.openai", 224, 7),
    "RN101:openai": Known("RN101-quickgelu", "timm/resnet101_clip.openai", 224, 7, place=(2, 1)),
    "ViT-B-32:laion2b_s34b_b79k": Known(
        "ViT-B-32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 224, 7
    ),
    "ViT-L-14:laion2b_s32b_b82k": Known(
        "ViT-L-14", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 224, 16, HALF
    ),
    "ViT-B-16:datacomp_xl_s13b_b90k": Known(
        "ViT-B-16", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", 224, 14, place=(2, 4)
    ),
    "ViT-B-16:metaclip_400m": Known(
        "ViT-B-16-quickgelu", "timm/vit_base_patch16_clip_224.metaclip_400m", 224, 14
    ),
    "ViT-B-16:dfn2b": Known("ViT-B-16-quickgelu", "apple/DFN2B-CLIP-ViT-B-16", 224, 14),
    "ViT-B-16-SigLIP:webli": Known("ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP", 224, 14, HALF),
    "ViT-B-32-SigLIP2-256:webli": Known(
        "ViT-B-32-SigLIP2-256", "timm/ViT-B-32-SigLIP2-256", 256, 8, HALF, (0, 1)
    ),
}


def image_tower(architecture: str) -> open_clip.CLIP:
    """A CLIP with the real image tower, seeded, and a small text tower."""
    config = open_clip.get_model_config(architecture)
    text = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    quick = config.get("quick_gelu", False)
    with torch.device("meta"):
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text, quick_gelu=quick)
    model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("bn3.weight"):  # open_clip begins with zeros: a place stays a place
                tensor.fill_(0.1)
            elif tensor.dim() > 1:  # faster than normal numbers, which nothing here needs
                limit = math.sqrt(3 / tensor[0].numel())
                tensor.uniform_(-limit, limit, generator=generator)
            else:
                tensor.fill_(1 if name.endswith(("weight", "running_var")) else 0)
    return model


@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_what_is_planted_comes_out_at_its_place(name):
    """In the real tower, on a grid of 3 x 5 patches: no token changes as much as the one whose
    patch does, and a label that looks for that change is found there."""
    known = KNOWN[name]
    weights = clip_weights(name)
    assert (weights.model, weights.hub) == (known.model, known.hub)
    clip = SurgeryCLIP(image_tower(weights.model))
    assert (clip.resolution, clip.patches()) == (known.resolution, known.patches)
    row, col = known.place
    patch = known.resolution // known.patches
    plain = torch.randn(3, 3 * patch, 5 * patch, generator=torch.Generator().manual_seed(1))
    planted = plain.clone()
    planted[:, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch] *= -1
    (before, after), grid = dense_grid(
        clip.model.visual, torch.stack([plain, planted]), CLIP_SURGERY
    )
    assert grid == (3, 5)
    change = (after - before)[1:]
    assert divmod(int(change.norm(dim=-1).argmax()), 5) == (row, col)
    label = change.mean(dim=0)
    assert divmod(int((change @ label).argmax()), 5) == (row, col)


# Names


def test_a_clips_name_may_be_written_as_people_do():
    assert split_clip_name(" ViT-B/32:OpenAI ") == ("ViT-B-32", "openai")
    assert clip_weights("ViT-L/14-336:OpenAI") == clip_weights("ViT-L-14-336:openai")
    for name in ("ViT-B-32", "ViT-B-32:", ":openai", "a:b:c", ""):
        with pytest.raises(ConfigError, match=r"named MODEL:WEIGHTS .* such as 'ViT-L-14:openai'"):
            split_clip_name(name)


def test_a_presets_clip_is_the_pinned_one():
    assert clip_weights("ViT-B-16:openai") is PRESETS["vit-b"].clip
    assert clip_weights("ViT-B-16:laion2b_s34b_b88k") is PRESETS["vit-h-laion"].clip


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ViT-L-14:opnai", "did you mean ViT-L-14:openai?"),
        ("ViT-B-16-SigLP:webli", "did you mean ViT-B-16-SigLIP:webli"),
        ("ViT-B-32-quickgelu:laion2b_e16", "did you mean ViT-B-32-quickgelu:laion400m_e"),
        ("RN101:whatever", "did you mean RN101:openai, RN101:yfcc15m?"),
        ("mine:mine", "see open_clip.list_pretrained()"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, advice):
    with pytest.raises(ConfigError) as caught:
        clip_weights(name)
    assert str(caught.value).startswith(f"open_clip has no CLIP {name}; {advice}")


def test_every_name_has_the_activation_of_its_weights():
    """Of all that open_clip lists: both activations have the same tensors."""
    quick = 0
    for model, tag in open_clip.list_pretrained():
        if "hf_model_name" in open_clip.get_model_config(model)["text_cfg"]:
            continue  # refused
        needed = bool(pretrained.get_pretrained_cfg(model, tag).get("quick_gelu"))
        config = open_clip.get_model_config(architecture_of(model, tag, needed))
        assert bool(config.get("quick_gelu")) == needed, (model, tag)
        quick += needed
    assert quick > 40


def test_weights_of_an_activation_that_open_clip_does_not_build():
    with pytest.raises(ConfigError, match=r"were trained with QuickGELU, and .* no ViT-g-14 with"):
        architecture_of("ViT-g-14", "mine", True)


# Towers and files that are refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("convnext_base_w:laion2b_s13b_b82k", "this one's is a ConvNeXt"),
        ("coca_ViT-B-32:laion2b_s13b_b90k", "this image tower pools its tokens"),
        ("EVA02-B-16:merged2b_s8b_b131k", "this one's is a Eva"),
        ("PE-Core-B-16:meta", "this one's is a Eva"),
        ("ViT-L-14-CLIPA:datacomp1b", "this image tower pools its tokens"),
        ("MobileCLIP-S1:datacompdr", "this one's is a FastVit"),
        ("MobileCLIP-B:datacompdr", "this one's is a HybridEmbed"),
        ("ViTamin-S:datacomp1b", "this one's is a HybridEmbed"),
        ("nllb-clip-base:v1", "has a text tower of transformers (facebook/nllb"),
        ("roberta-ViT-B-32:laion2b_s12b_b32k", "has a text tower of transformers (roberta-base)"),
    ],
)
def test_towers_that_cannot_be_used_are_refused_before_a_download(name, reason, tmp_path):
    """No server answers here, and none is asked."""
    with pytest.raises(ConfigError) as caught:
        load("vit-b", clip=name, weights_dir=tmp_path, device="cpu")
    assert str(caught.value).startswith(name.partition(":")[0])
    assert reason in str(caught.value)
    assert "use " in str(caught.value)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A small architecture whose weights "mine" the hub has, which a local server stands for, and
    "pickle" and "elsewhere", which nobody has as safetensors."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    vision = {"image_size": 64, "layers": 7, "width": 64, "patch_size": 16}
    for name, quick in (("clips-test", False), ("clips-test-quickgelu", True)):
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    half = {"mean": HALF[0], "std": HALF[1], "interpolation": "bilinear", "quick_gelu": True}
    records = {
        "mine": {**half, "hf_hub": "me/mine/"},
        "pickle": {**half, "hf_hub": "me/mine/pytorch_model.bin"},
        "elsewhere": {**half, "url": "https://example.com/clip.pt"},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "clips-test", records)
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", *BUNDLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no cache of the hub"))
    state = open_clip.create_model("clips-test-quickgelu").state_dict()
    with serve(b"") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.files = {HUB_FILE: safetensors.torch.save(state)}
        yield server


def test_a_named_clip_is_downloaded_and_gets_its_own_pixels(hub, tmp_path):
    """Its activation, mean, standard deviation, interpolation and resolution; the settings stay the
    preset's."""
    vit_b = dataclasses.replace(PRESETS["vit-b"], resolution=336, config=Config(grid=2))
    segmenter = load(vit_b, clip="clips-test:mine", sam=small_sam(), weights_dir=tmp_path)
    assert (tmp_path / "clips-test-quickgelu-mine.safetensors").read_bytes() == hub.files[HUB_FILE]
    assert hub.asked == [f"/me/mine/resolve/main/{HUB_FILE}"]
    clip = segmenter.clip
    assert any(isinstance(m, open_clip.transformer.QuickGELU) for m in clip.model.modules())
    assert (clip.resolution, segmenter.config) == (64, Config(grid=2))
    white = clip.preprocess([np.full((64, 64, 3), 255, np.uint8)])
    torch.testing.assert_close(white, torch.ones(1, 3, 64, 64))  # (1 - 0.5) / 0.5
    assert clip.model.visual.preprocess_cfg["interpolation"] == "bilinear"
    assert segmenter(np.zeros((40, 60, 3), np.uint8), ["cat"]).maps.shape[0] == 1
    given = {"config": Config(grid=3), "sam": small_sam(), "weights_dir": tmp_path}
    again = load(clip="clips-test:mine", offline=True, **given)
    assert (again.config, again.clip.resolution) == (Config(grid=3), 64)


def test_the_tiny_settings_fit_no_other_clip(hub):
    assert with_clip(PRESETS["tiny"], "clips-test:mine").config == Config()


def test_weights_that_are_pickles_only_are_refused_unless_one_has_the_file(hub, tmp_path):
    for tag, reason in (
        ("pickle", "as pytorch_model.bin of https://huggingface.co/me/mine; only open_clip_model"),
        ("elsewhere", "as a pickle from https://example.com/clip.pt, which is not downloaded"),
    ):
        with pytest.raises(ConfigError) as caught:
            load("vit-b", clip=f"clips-test:{tag}", weights_dir=tmp_path)
        assert f"open_clip has clips-test:{tag} {reason}" in str(caught.value)
        assert "--clip-checkpoint" in str(caught.value)
        path = tmp_path / "clip.safetensors"
        path.write_bytes(hub.files[HUB_FILE])
        name = f"clips-test:{tag}"
        given = {
            "clip_checkpoint": path,
            "config": Config(grid=2),
            "sam": small_sam(),
            "weights_dir": tmp_path,
        }
        segmenter = load("vit-b", clip=name, offline=True, **given)
        assert segmenter.clip.model.visual.preprocess_cfg["mean"] == HALF[0]
    assert hub.asked == []


def test_a_repository_without_the_file(hub, tmp_path):
    hub.missing = {HUB_FILE}
    with pytest.raises(WeightsError, match=rf"me/mine has no {HUB_FILE}, .* --clip-checkpoint"):
        load("vit-b", clip="clips-test:mine", weights_dir=tmp_path)


def test_a_method_without_clip_takes_none(tmp_path):
    with pytest.raises(ConfigError, match="'owlv2' works without a CLIP; leave 'a:b' out"):
        load("vit-b", clip="a:b", method="owlv2", weights_dir=tmp_path)


# The command line


def test_a_named_clip_in_the_command_line(monkeypatch):
    """Its name, in one spelling, is part of what a run is told by; the vocabulary and the settings
    of tiny belong to tiny's CLIP."""
    seen = {}
    monkeypatch.setattr(
        "clip2sam.models.loading.load", lambda preset, **given: seen.update(given, preset=preset)
    )
    models = ModelOptions("tiny", clip="ViT-B/32:OpenAI").chosen()
    assert models.name == "tiny with ViT-B-32:openai"
    assert models.config() == Config() != ModelOptions("tiny").config()
    classes = as_label_set(["traffic light"]).classes
    assert models.check_known(classes, LabelOptions()) == ()
    with pytest.raises(LabelError, match="traffic light"):
        ModelOptions("tiny").check_known(classes, LabelOptions())
    models.load(models.config())
    assert (seen["preset"], seen["clip"]) == ("tiny", "ViT-B-32:openai")
    assert ModelOptions("vit-b").name == "vit-b"


def test_a_run_with_a_named_clip_continues_with_its_preset(monkeypatch, tmp_path):
    (tmp_path / MANIFEST).touch()
    begun = SimpleNamespace(fingerprint={"preset": "vit-l with ViT-B-32:openai"})
    monkeypatch.setattr("clip2sam.labelling.content.begun_run", lambda _: begun)
    assert chosen_preset(None, run=tmp_path) == "vit-l"


def test_downloaded_clips_are_listed(hub, tmp_path):
    load(
        "vit-b",
        clip="clips-test:mine",
        config=Config(grid=2),
        sam=small_sam(),
        weights_dir=tmp_path,
    )
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    (tmp_path / "sam_vit_b_01ec64.pth.verified").touch()
    for command in (["doctor"], ["weights", "list"]):
        done = CliRunner().invoke(app, [*command, "--weights-dir", str(tmp_path)])
        named = [line for line in done.stdout.splitlines() if line.endswith(", for --clip")]
        assert len(named) == 1
        assert named[0].strip().startswith("clips-test-quickgelu-mine.safetensors")


# Tokenizers


def test_a_tokenizer_out_of_reach(tmp_path, monkeypatch):
    """Offline, nobody is asked for it."""
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *where: asked.append(where[1:]))
    with pytest.raises(WeightsError) as caught:
        load_tokenizer("ViT-B-16-SigLIP", cache=tmp_path, offline=True)
    assert str(caught.value).startswith(
        f"the tokenizer of ViT-B-16-SigLIP, timm/ViT-B-16-SigLIP, is missing in {tmp_path}: the "
        "download is forbidden (offline); run once with a network"
    )
    assert asked == []


def test_a_tokenizer_of_transformers_needs_the_package(monkeypatch):
    """Told before anything is downloaded; plain CLIPs have theirs inside open_clip."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"tokenizer of ViT-B-16-SigLIP, timm/.* needs the pack"):
        clip_weights("ViT-B-16-SigLIP:webli")
    assert load_tokenizer("ViT-L-14-336-quickgelu")(["a cat"]).shape == (1, 77)


def test_a_downloaded_tokenizer_is_read_from_the_cache(monkeypatch, tmp_path):
    """In the form of the hub's cache, with a vocabulary of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "models--timm--ViT-B-16-SigLIP" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0" * 40)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "cat": 2}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"})
    )
    tokens = load_tokenizer("ViT-B-16-SigLIP", cache=tmp_path, offline=True)(["a cat"])
    assert tokens.tolist() == [[1, 2, *[0] * 62]]
