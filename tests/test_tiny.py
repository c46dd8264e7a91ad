"""The tiny models: they load, they are small, and they do what they learned."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from clip2sam.clip import TEMPLATES, encode_prompts
from clip2sam.errors import WeightsError
from clip2sam.tiny.demo import Report, Row, matched_ious
from clip2sam.tiny.files import CLIP_FILE, SAM_FILE, embedded_file
from clip2sam.tiny.models import (
    VOCABULARY_SIZE,
    build_tiny_clip,
    build_tiny_sam,
    compact_rows,
    conv_stem,
    known_tokens,
    load_tiny_clip,
    load_tiny_sam,
    save_tiny_clip,
    save_tiny_sam,
    tiny_tokenizer,
)
from clip2sam.tiny.scenes import (
    COLOURS,
    KINDS,
    SHAPES,
    TEXTURES,
    all_labels,
    label_mask,
    requested_labels,
    scene,
    split_seed,
)

# Recorded floors, somewhat below what the shipped weights reach on these few scenes.
PRESENCE_FLOOR = 0.9
SAM_FLOOR = 0.8


@pytest.fixture(scope="module")
def tiny_clip():
    return load_tiny_clip()


@pytest.fixture(scope="module")
def tiny_sam():
    return load_tiny_sam()


def test_files_are_small():
    assert sum(embedded_file(name).stat().st_size for name in (CLIP_FILE, SAM_FILE)) <= 12_000_000


def test_they_are_the_libraries_own_models(tiny_clip, tiny_sam):
    model, tokenizer = tiny_clip
    assert isinstance(model, open_clip.model.CLIP)
    assert isinstance(model.visual, open_clip.transformer.VisionTransformer)
    assert isinstance(tokenizer, open_clip.SimpleTokenizer)
    assert isinstance(tiny_sam, Sam)
    for part in (model, tiny_sam):
        assert not part.training
        assert {p.dtype for p in part.parameters()} == {torch.float32}
        assert all(torch.isfinite(p).all() for p in part.parameters())


@pytest.mark.parametrize(("centred", "shift"), [(True, 0.5), (False, -7.5)])
def test_receptive_field_of_a_token(centred, shift):
    """Its centre against the patch's: half a pixel off, or 7.5 pixels up and left."""
    stem = conv_stem([1] * 7, (2, 2, 1, 2, 1, 2, 1), 1, centred).eval()
    for parameter in stem.parameters():
        torch.nn.init.ones_(parameter)
    pixels = torch.ones(1, 3, 224, 224, requires_grad=True)
    stem(pixels)[0, 0, 7, 6].backward()
    for axis, token in ((1, 7), (0, 6)):
        seen = pixels.grad[0, 0].amax(dim=axis).nonzero()
        assert (float(seen.min()) + float(seen.max()) + 1) / 2 == 16 * token + 8 + shift


def test_every_text_of_the_ensemble_fits():
    """The longest label of three words, in every template, keeps its end-of-text token."""
    tokenizer = tiny_tokenizer()
    labels = [f"{c} {t} {s}" for c in COLOURS for t in TEXTURES for s in SHAPES]
    longest = max(labels, key=lambda x: len(tokenizer.encode(x)))
    assert (
        max(len(tokenizer.encode(t.replace("{}", longest))) for t in TEMPLATES) + 2
        <= tokenizer.context_length
    )


def test_unknown_words_share_a_row(tiny_clip):
    model, tokenizer = tiny_clip
    rows = model.token_embedding.weight
    assert rows.shape[0] == VOCABULARY_SIZE
    person, light = tokenizer.encode("person")[0], tokenizer.encode("traffic")[0]
    assert torch.equal(rows[person], rows[light])
    red, blue = tokenizer.encode("red")[0], tokenizer.encode("blue")[0]
    assert not torch.equal(rows[red], rows[blue])
    assert not torch.equal(rows[red], rows[person])
    assert len(torch.unique(rows, dim=0)) == len(known_tokens()) + 1


def test_compact_rows_keep_the_end_of_text_highest():
    known = known_tokens()
    rows = compact_rows(known)
    assert rows[tiny_tokenizer().eot_token_id] == rows.max() == len(known)
    assert rows[known].unique().tolist() == list(range(1, len(known) + 1))
    assert int((rows == 0).sum()) == VOCABULARY_SIZE - len(known)


def test_a_saved_clip_comes_back(tmp_path):
    known = known_tokens()
    model = build_tiny_clip(len(known) + 1).eval()
    save_tiny_clip(model, known, tmp_path / "clip.safetensors")
    loaded, tokenizer = load_tiny_clip(tmp_path / "clip.safetensors")
    tokens = tokenizer(["a red heart", "this is one wooden chair in the scene."])
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(
            loaded.encode_text(tokens), model.encode_text(compact_rows(known)[tokens]), atol=5e-3
        )
        assert torch.allclose(loaded.encode_image(pixels), model.encode_image(pixels), atol=2e-2)


def test_a_saved_sam_comes_back(tmp_path):
    model = build_tiny_sam().eval()
    save_tiny_sam(model, tmp_path / "sam.safetensors")
    pixels = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected, got = (
            model.image_encoder(pixels),
            load_tiny_sam(tmp_path / "sam.safetensors").image_encoder(pixels),
        )
    assert torch.allclose(expected, got, atol=2e-2)


def test_wrong_files(tmp_path):
    with pytest.raises(WeightsError, match="found no file"):
        load_tiny_clip(tmp_path / "none.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"tiny_other\.safetensors, a part of clip2sam itself, is missing; install",
    ):
        embedded_file("tiny_other.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(embedded_file(SAM_FILE).read_bytes()[:5000])
    with pytest.raises(WeightsError, match="safetensors file"):
        load_tiny_sam(torn)
    shutil.copy(embedded_file(CLIP_FILE), torn)
    with pytest.raises(WeightsError, match="missing"):
        load_tiny_sam(torn)
    shutil.copy(embedded_file(SAM_FILE), torn)
    with pytest.raises(WeightsError, match="tiny CLIP"):
        load_tiny_clip(torn)
    tensors = load_file(embedded_file(SAM_FILE))
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, torn)
    with pytest.raises(WeightsError, match=r"missing \['mask_decoder.iou_token.weight'\]"):
        load_tiny_sam(torn)


@torch.no_grad()
def _presence(model, text, indices):
    """CLS cosines of each text with each validation scene, and the scenes."""
    images = [scene(split_seed("validation", i)) for i in indices]
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (model.visual.image_mean, model.visual.image_std)
    )
    pixels = torch.from_numpy(np.stack([p.pixels for p in images])).permute(0, 3, 1, 2) / 255
    cls = model.encode_image((pixels - mean) / std, normalize=True)
    return cls @ text.T, images


def test_present_labels_score_above_absent_and_unknown_ones(tiny_clip):
    model, tokenizer = tiny_clip
    names = [x for kind in KINDS for x in all_labels(kind)]
    scores, images = _presence(
        model, encode_prompts(model, tokenizer, [*names, "person", "traffic light"]), range(40)
    )
    for kind in KINDS:
        requested = [(r, x) for r, p in enumerate(images) for x in requested_labels(p)[kind]]
        value = np.array([float(scores[r, names.index(x)]) for r, x in requested])
        truth = np.array([label_mask(images[r], x).any() for r, x in requested])
        above = (value[truth][:, None] > value[~truth]).mean()
        assert above > PRESENCE_FLOOR, kind
        assert float(scores[:, -2:].max()) < np.quantile(value[truth], 0.1), kind


def test_sam_cuts_objects_out_from_true_points(tiny_sam):
    predictor = SamPredictor(tiny_sam)
    overlaps = []
    for index in range(12):
        image = scene(split_seed("validation", index), (200, 280) if index % 2 else 224)
        predictor.set_image(image.pixels)
        for item in image.objects:
            depth = cv2.distanceTransform(np.pad(item.mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[
                1:-1, 1:-1
            ]
            inside = np.argwhere(depth > depth.max() / 2)[
                :: max(1, int((depth > depth.max() / 2).sum()) // 3)
            ][:3, ::-1]
            corners = np.array([[2, 2], [image.size[1] - 3, image.size[0] - 3]])
            outside = corners[~item.mask[corners[:, 1], corners[:, 0]]]
            masks, predicted, _ = predictor.predict(
                np.concatenate([inside, outside]).astype(float),
                np.r_[np.ones(len(inside)), np.zeros(len(outside))],
            )
            mask = masks[int(predicted.argmax())]
            overlaps.append((mask & item.mask).sum() / (mask | item.mask).sum())
    assert len(overlaps) > 20
    assert np.mean(overlaps) > SAM_FLOOR


def with_a_bit_flipped(source: Path, target: Path, at: int = -1000) -> Path:
    """A copy of a file in which one bit, by default far behind the header, is another."""
    content = bytearray(source.read_bytes())
    content[at] ^= 1
    target.write_bytes(content)
    return target


@pytest.mark.parametrize(("name", "load"), [(CLIP_FILE, load_tiny_clip), (SAM_FILE, load_tiny_sam)])
def test_one_flipped_bit_in_an_embedded_file_is_refused(tmp_path, monkeypatch, name, load):
    """It loads and runs all the same, and finds nothing or the wrong things."""
    damaged = with_a_bit_flipped(embedded_file(name), tmp_path / name)
    monkeypatch.setattr("clip2sam.tiny.files.embedded_path", lambda _: damaged)
    with pytest.raises(WeightsError, match=f"{name} has SHA-256 .*: its content changed; install"):
        load()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"bytes, expected .*: it is cut or another file"):
        load()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    known = known_tokens()
    clip, sam = build_tiny_clip(len(known) + 1), build_tiny_sam()
    with torch.no_grad():
        clip.visual.proj[3, 4] = value
        sam.mask_decoder.iou_token.weight[0, 1] = value
    save_tiny_clip(clip, known, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match=r"the tensor visual\.proj in .* not finite"):
        load_tiny_clip(tmp_path / "clip.safetensors")
    save_tiny_sam(sam, tmp_path / "sam.safetensors")
    with pytest.raises(WeightsError, match=r"the tensor mask_decoder\.iou_token\.weight in"):
        load_tiny_sam(tmp_path / "sam.safetensors")


@pytest.mark.parametrize(
    "known", ["", "[1, 2", "null", "7", '"text"', "{}", "[1, null]", "[[1]]", "[-1]", "[1e9]"]
)
def test_damaged_metadata_is_refused(tmp_path, known):
    tensors = load_file(embedded_file(CLIP_FILE))
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"][:2].clone()
    save_file(tensors, tmp_path / "clip.safetensors", {"known_tokens": known})
    with pytest.raises(WeightsError, match="tiny CLIP's weights"):
        load_tiny_clip(tmp_path / "clip.safetensors")


def test_a_token_embedding_without_rows_is_refused(tmp_path):
    tensors = load_file(embedded_file(CLIP_FILE))
    tensors["token_embedding.weight"] = torch.zeros(())
    save_file(tensors, tmp_path / "clip.safetensors", {"known_tokens": "[]"})
    with pytest.raises(WeightsError, match="tiny CLIP's weights"):
        load_tiny_clip(tmp_path / "clip.safetensors")


def test_a_mask_and_a_drawn_object_are_one_pair_at_most():
    left, right, both = (np.zeros((4, 12), bool) for _ in range(3))
    left[:, :4], right[:, 4:8], both[:, :8] = True, True, True
    assert matched_ious([left, right], [right, left]) == (1.0, 1.0)
    assert matched_ious([both], [left, right]) == (0.5,), "one mask finds one object"
    assert matched_ious([left, both], [left]) == (1.0,), "the better one"
    assert matched_ious([left, left], [left]) == (1.0,), "an object is found once"
    assert (
        matched_ious([left], [right]) == matched_ious([], [left]) == matched_ious([left], []) == ()
    )


def test_the_demos_summary_counts_objects():
    rows = (Row("a.png", "star", 3, 3, (0.9, 0.6), 0.5), Row("a.png", "moon", 0, 1, (), 0.4))
    assert Report((*rows, Row("a.png", "ring", 0, 0, (), 0.1)), ()).summary() == (
        "2 of 3 drawn objects found, mean IoU 0.500; 2 of 4 masks are false; "
        "1 of 2 absent labels got a mask"
    )
