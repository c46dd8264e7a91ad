"""Trained locators by name: from the hub's cache, and what is said where that can't be."""

import sys
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from PIL import Image as PILImage

import clip2sam
from clip2sam.cli import app as cli
from clip2sam.config import Config
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError, WeightsError
from clip2sam.features import Features
from clip2sam.models import locators
from clip2sam.models.loading import with_method
from clip2sam.models.locators import TRAINED
from clip2sam.trained import HUB_MODELS, hub
from tests.test_pipeline import noise
from tests.test_trained import NAMES, made

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny():
    return clip2sam.load("tiny", device="cpu")


def snapshot(folder: Path, name: str) -> Path:
    """Where the hub's cache in a weights folder has the files of a method."""
    about = HUB_MODELS[name]
    place = folder / "hub" / f"models--{about.repository.replace('/', '--')}"
    if len(about.revision) == len(COMMIT):
        return place / "snapshots" / about.revision
    reference = place / "refs" / about.revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(COMMIT)
    return place / "snapshots" / COMMIT


def stored(folder: Path, name: str, sam) -> Path:
    """A small model in the cache, and its folder."""
    there = snapshot(folder, name)
    pair = made(name, sam).pair
    pair.model.save_pretrained(there)
    pair.processor.save_pretrained(there)
    return there


def found_by(segmenter):
    labels = as_label_set(["cat", "a dog"])
    features = Features(None, segmenter.sam, [noise()])
    return segmenter.locator.locate(features, labels, Config(grid=4)).raw


@pytest.mark.parametrize("name", NAMES)
def test_by_name(name, tiny, tmp_path):
    """The model, its processor and the published threshold; without a CLIP and a network."""
    there = stored(tmp_path, name, tiny.sam)
    settings = {"weights_dir": tmp_path, "offline": True}
    segmenter = clip2sam.load("tiny", method=name, device="cpu", **settings)
    own = made(name, tiny.sam)
    known = segmenter.locator.weights()
    assert (known["model"], known["commit"]) == (own.weights()["model"], there.name)
    assert segmenter.locator.pair.model.dtype == torch.float32
    assert not segmenter.locator.pair.model.training
    expected = own.locate(
        Features(None, tiny.sam, [noise()]), as_label_set(["cat", "a dog"]), Config(grid=4)
    )
    assert torch.allclose(found_by(segmenter), expected.raw, atol=1e-5)
    with pytest.raises(ConfigError, match="expected a segmenter with a CLIP"):
        _ = segmenter.clip
    assert segmenter.config.presence_threshold == TRAINED[name].presence_threshold
    assert segmenter.config.background_prompts == ()
    assert with_method(tiny, name, **settings).locator.weights() == known


def test_on_the_command_line(tiny, tmp_path, monkeypatch, capsys):
    stored(tmp_path, "owlv2", tiny.sam)
    capsys.readouterr()  # saving has a progress bar
    PILImage.fromarray(noise().pixels).save(tmp_path / "street.png")

    def call(*more):
        arguments = ["segment", tmp_path / "street.png", "--label", "Cat", "--method", "owlv2"]
        arguments += ["--offline", "--overlays", "none", "--output", tmp_path / "out", *more]
        monkeypatch.setattr(sys, "argv", ["clip2sam", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    assert call("--weights-dir", tmp_path) == (0, "")
    assert (tmp_path / "out" / "annotations.json").is_file()
    code, message = call("--weights-dir", tmp_path / "other")
    assert code == 3
    assert "owlv2 needs google/owlv2-base-patch16-ensemble" in " ".join(message.split())


# What is said where it can't be


def load(name, folder, offline=True):
    return hub.load_from_hub(name, HUB_MODELS[name], folder / "hub", offline=offline)


def test_without_the_package(tiny, tmp_path, monkeypatch):
    wanted = r"owlv2 needs the package transformers: pip install 'clip2sam\[transformers\]'$"
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=wanted):
        load("owlv2", tmp_path)
    monkeypatch.setattr(locators, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=wanted):
        clip2sam.load("vit-h", method="owlv2", offline=True)  # before SAM's weights are looked for
    assert with_method(tiny, "raw").config.method.name == "raw"


def test_with_an_old_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(ConfigError, match=r"owlv2 needs transformers 5, but 4\.57\.1 is installed"):
        load("owlv2", tmp_path)


def test_missing_files(tmp_path):
    wanted = (
        r"owlv2 needs google/owlv2-base-patch16-ensemble, which is not complete in .*hub: "
        r"the download is forbidden \(offline\); run once with a network and without --offline"
    )
    with pytest.raises(WeightsError, match=wanted):
        load("owlv2", tmp_path)
    with pytest.raises(WeightsError, match=r"sam3 .* for those who have been given its weights"):
        load("sam3", tmp_path)


def failing(error):
    def download(*_, **__):
        raise error

    return download


def test_no_network_and_no_right(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", failing(httpx.ConnectError("no route to host")))
    with pytest.raises(WeightsError, match=r"the download failed \(no route to host\); run once"):
        load("clipseg", tmp_path, offline=False)
    request = httpx.Request("GET", "https://huggingface.co/facebook/sam3")
    gated = GatedRepoError("401", response=httpx.Response(401, request=request))
    monkeypatch.setattr(hub, "snapshot_download", failing(gated))
    wanted = (
        r"the hub does not give facebook/sam3 to you; it is for those who have been given its "
        r"weights: ask for them at https://huggingface\.co/facebook/sam3 and set HF_TOKEN"
    )
    with pytest.raises(WeightsError, match=wanted):
        load("sam3", tmp_path, offline=False)


def test_what_is_downloaded(tmp_path, monkeypatch):
    """Settings, vocabularies and safetensors, at the commit; never a pickle."""
    asked = {}

    def download(repository, **arguments):
        asked.update(arguments, repository=repository)
        raise httpx.ConnectError("enough")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(WeightsError):
        load("grounding-dino", tmp_path, offline=False)
    assert asked == {
        "repository": "IDEA-Research/grounding-dino-tiny",
        "revision": "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        "cache_dir": str(tmp_path / "hub"),
        "allow_patterns": ["*.json", "*.txt", "*.safetensors"],
        "local_files_only": False,
    }


def test_a_pickle_is_not_read(tiny, tmp_path):
    there = stored(tmp_path, "groupvit", tiny.sam)
    (there / "model.safetensors").rename(there / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"gcc-yfcc at refs/pr/2 has no safetensors file"):
        load("groupvit", tmp_path)


def test_files_that_dont_fit(tiny, tmp_path):
    there = stored(tmp_path, "owlv2", tiny.sam)
    weights = there / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"can't be read as Owlv2ForObjectDetection .* delete"):
        load("owlv2", tmp_path)
    model = made("owlv2", tiny.sam).pair.model
    state = {k: v for k, v in model.state_dict().items() if "box_head.dense0" not in k}
    model.save_pretrained(there, state_dict=state)
    wanted = r"does not fit Owlv2ForObjectDetection: 2 tensors are missing .* such as box_head\.d"
    with pytest.raises(WeightsError, match=wanted):
        load("owlv2", tmp_path)


def test_every_pin_is_a_commit_with_a_licence():
    for name, about in HUB_MODELS.items():
        assert about.licence
        assert len(about.revision) == 40 or name == "groupvit"
        assert about.gated == (name == "sam3")
