"""Text features on disk: the same numbers, never another tower's, and no harm from damage, other
processes or a full disk."""

import errno
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch

import clip2sam.clip.model as room
from clip2sam.clip import SurgeryCLIP
from clip2sam.clip.text_cache import TextCache, tower_hash
from clip2sam.data.labels import as_label_set
from tests.models import small_clip

LABELS = as_label_set(["cat", "../traffic light", "Zebrastreifen ✓"])


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The prompts that went through the text tower."""
    seen: list[str] = []
    encode = room.encode_prompts
    monkeypatch.setattr(
        room,
        "encode_prompts",
        lambda m, t, prompts, *a: seen.extend(prompts) or encode(m, t, prompts, *a),
    )
    return seen


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_second_run_computes_nothing_and_gets_the_same(tmp_path, encoded):
    plain = SurgeryCLIP(small_clip()).encode_labels(LABELS)
    first = SurgeryCLIP(small_clip(), text_folder=tmp_path).encode_labels(LABELS)
    encoded.clear()
    clip = SurgeryCLIP(small_clip(), text_folder=tmp_path)
    assert torch.equal(clip.encode_labels(LABELS), first)
    assert torch.equal(plain, first)
    assert encoded == []
    clip.encode_labels(as_label_set(["cat", "dog"]))
    assert encoded == ["dog"]
    assert [p.suffix for p in files(tmp_path)] == [".npy"] * 4


@pytest.mark.parametrize("change", ["weights", "dtype", "templates", "tokenizer"])
def test_other_features_are_not_mistaken(tmp_path, encoded, change):
    SurgeryCLIP(small_clip(), text_folder=tmp_path).encode_labels(LABELS)
    encoded.clear()
    model, tokenizer, labels = small_clip(), open_clip.SimpleTokenizer(), LABELS
    if change == "weights":
        with torch.no_grad():
            model.token_embedding.weight[320] += 1
    elif change == "dtype":
        model = model.bfloat16()
    elif change == "templates":
        labels = as_label_set(LABELS, templates=["a {}"])
    else:
        tokenizer = open_clip.SimpleTokenizer(clean="canonicalize")
    SurgeryCLIP(model, tokenizer, text_folder=tmp_path).encode_labels(labels)
    assert len(encoded) == 3


def test_another_type_of_device_has_features_of_its_own():
    """Their last digits differ."""
    towers = [
        SimpleNamespace(
            logit_scale=SimpleNamespace(device=torch.device(device)),
            state_dict=lambda: {"text_projection": torch.ones(2, 2)},
        )
        for device in ("cpu", "cuda:0", "cuda:1")
    ]
    cpu, gpu, other_gpu = (tower_hash(tower, open_clip.SimpleTokenizer()) for tower in towers)
    assert cpu != gpu
    assert gpu == other_gpu


def test_the_image_tower_does_not_matter(tmp_path, encoded):
    SurgeryCLIP(small_clip(), text_folder=tmp_path).encode_labels(LABELS)
    encoded.clear()
    model = small_clip()
    with torch.no_grad():
        model.visual.proj += 1
    SurgeryCLIP(model, text_folder=tmp_path).encode_labels(LABELS)
    assert encoded == []


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_file_is_computed_and_written_again(tmp_path, encoded, damage):
    expected = SurgeryCLIP(small_clip(), text_folder=tmp_path).encode_labels(LABELS)
    files(tmp_path)[0].write_bytes(damage)
    encoded.clear()
    assert torch.equal(
        SurgeryCLIP(small_clip(), text_folder=tmp_path).encode_labels(LABELS), expected
    )
    assert len(encoded) == 1
    assert torch.equal(
        SurgeryCLIP(small_clip(), text_folder=tmp_path).encode_labels(LABELS), expected
    )
    assert len(encoded) == 1


def test_a_file_with_a_pickle_is_not_opened(tmp_path):
    cache = TextCache(tmp_path, small_clip(), open_clip.SimpleTokenizer())
    cache.put("cat", ("a {}",), torch.ones(4))
    np.save(files(tmp_path)[0], np.array([object()]), allow_pickle=True)
    assert cache.get("cat", ("a {}",)) is None


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="text features are not kept in .*a file") as caught:
        SurgeryCLIP(small_clip(), text_folder=blocked).encode_labels(LABELS)
    assert len(caught) == 1


def test_a_full_disk_costs_one_warning_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = SurgeryCLIP(small_clip()).encode_labels(LABELS)
    monkeypatch.setattr(os, "fsync", full)
    clip = SurgeryCLIP(small_clip(), text_folder=tmp_path)
    with pytest.warns(UserWarning, match="not kept in .*No space left on device") as caught:
        features = clip.encode_labels(LABELS)
    assert len(caught) == 1
    assert torch.equal(features, expected)
    assert files(tmp_path) == []


def test_many_at_once_share_a_folder(tmp_path):
    """Three processes, forked from this one: importing PyTorch takes longer than the rest."""
    folder, names = tmp_path / "shared", [f"thing {i}" for i in range(20)]
    clip = SurgeryCLIP(small_clip(), text_folder=folder)
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(3)

    def encode(said: Path) -> None:
        found = []
        for name in names:
            together.wait(60)  # all want the same file at once
            found.append(clip.encode_texts([name]))
        np.save(said, torch.cat(found).numpy())

    said = [tmp_path / f"{i}.npy" for i in range(3)]
    runs = [fork.Process(target=encode, args=(path,)) for path in said]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    first, *others = [np.load(path) for path in said]
    assert first.shape == (20, 32)
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert [p.suffix for p in files(folder)] == [".npy"] * 20
