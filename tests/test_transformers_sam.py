"""SAM 2.1, EdgeTAM and SAM-HQ against transformers' own path, on small seeded models."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVisionConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VisionConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamHQVisionConfig,
    SamImageProcessor,
    TimmWrapperConfig,
)

import clip2sam
from clip2sam.data.images import load_image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError, WeightsError
from clip2sam.labelling.engine import SegmenterEngine
from clip2sam.models import transformers_sam
from clip2sam.models.presets import PRESETS
from clip2sam.models.transformers_sam import build, load_transformers_sam
from clip2sam.sam.hiera import encode_stages
from clip2sam.sam.transformers_sam import SAM2, SAMHQ
from clip2sam.types import Prompts
from tests.trained_models import seeded

SIDE, LOW = 128, 32
PROMPT = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 16}
DECODER = {
    "hidden_size": 32,
    "mlp_dim": 48,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 32,
}
HIERA = {
    "hidden_size": 8,
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "blocks_per_stage": [1, 2, 3, 2],
    # A stage of 8 x 8 tokens has windows of 6 that reach beyond it.
    "window_size_per_stage": [8, 4, 6, 3],
    "global_attention_blocks": [4],
    "window_positional_embedding_background_size": [3, 3],
}


def filled(model, seed=0):
    """Seeded weights; the biases and encodings, which start at 0, too."""
    seeded(model, gain=1.2, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def sam2(seed=0):
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(**HIERA),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER
    )
    return filled(Sam2Model(config), seed)


def edgetam():
    backbone = TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    )
    vision = EdgeTamVisionConfig(
        backbone_config=backbone,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    config = EdgeTamConfig(
        vision_config=vision, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER
    )
    return filled(EdgeTamModel(config))


def sam_hq():
    vision = SamHQVisionConfig(
        hidden_size=24,
        output_channels=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        window_size=3,
        global_attn_indexes=[1, 2],
        num_pos_feats=16,
    )
    config = SamHQConfig(
        vision_config=vision,
        prompt_encoder_config=PROMPT,
        mask_decoder_config={**DECODER, "vit_dim": 24},
    )
    return filled(SamHQModel(config))


@pytest.fixture(scope="module", params=[sam2, edgetam], ids=["sam2", "edgetam"])
def cutter(request):
    return SAM2(request.param())


@pytest.fixture(scope="module")
def hq():
    return SAMHQ(sam_hq())


def image(height, width, seed=0):
    """A smooth picture, so that resizing it in two ways gives nearly the same."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 4, 4))) * 255
    fine = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return fine[0].permute(1, 2, 0).numpy().astype(np.uint8)


def as_read(picture):
    """An image for transformers' processors. Of an array they take a side of 1 for a colour
    channel, and PyTorch's resize of 8 bits misreads a width of 1 where the channels come first."""
    return Image.fromarray(picture)


def prompts(points, sizes, counts=None, boxes=None, masks=None):
    """Of lists of (x, y, label), one for each prompt."""
    most = max(map(len, points))
    padded = [[*own, *[(0, 0, -1)] * (most - len(own))] for own in points]
    rows = torch.tensor(padded, dtype=torch.float32)
    return Prompts(
        rows[..., :2],
        rows[..., 2].int(),
        torch.zeros(len(points), dtype=torch.long),
        counts or (len(points),),
        sizes,
        boxes=None if boxes is None else torch.tensor(boxes, dtype=torch.float32),
        mask_inputs=masks,
    )


def encoded(cutter, *pictures):
    return cutter.encode_image(cutter.preprocess([cutter.resize(load_image(p)) for p in pictures]))


def sam2_reference(model, picture, points, boxes=None, masks=None):
    """Candidates, their IoU and the masks of one image by transformers' processor and model."""
    images = Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})
    asked = Sam2Processor(images)(
        images=as_read(picture),
        # The predictors of SAM take pixel indices.
        input_points=[[[[int(x), int(y)] for x, y, _ in own] for own in points]],
        input_labels=[[[label for *_, label in own] for own in points]],
        input_boxes=None if boxes is None else [boxes],
        return_tensors="pt",
    )
    sizes = asked.pop("original_sizes")
    with torch.no_grad():
        out = model(**asked, input_masks=masks)
    made = Sam2Processor(images).post_process_masks(out.pred_masks, sizes)
    return out.pred_masks[0], out.iou_scores[0], made[0]


def assert_same(cutter, picture, reference, asked):
    logits, iou, masks = reference
    made = cutter.decode(encoded(cutter, picture), asked)
    spread = logits.std().item()
    torch.testing.assert_close(made.logits, logits, atol=0.02 * spread, rtol=0.01)
    torch.testing.assert_close(made.predicted_iou, iou, atol=2e-3, rtol=0.01)
    ours = torch.cat(list(cutter.upscale(made.logits.flatten(0, 1), picture.shape[:2])))
    assert spread > 0.5
    assert (ours == masks.flatten(0, 1)).float().mean() > 0.99


ONE = [[(30.6, 20.2, 1)], [(5.5, 40.5, 1)]]
THREE = [[(30.6, 20.2, 1), (3.5, 2.5, 0), (60.0, 33.0, 1)], [(1.5, 1.5, 1)] * 2 + [(9.5, 9.5, 0)]]
BOXES = [[10.0, 5.0, 60.5, 40.0], [0.0, 0.0, 30.0, 47.0]]


@pytest.mark.parametrize(("points", "boxes"), [(ONE, None), (THREE, None), (ONE, BOXES)])
def test_points_and_boxes_give_the_masks_of_transformers(cutter, points, boxes):
    picture = image(48, 80)
    reference = sam2_reference(cutter.model, picture, points, boxes)
    assert_same(cutter, picture, reference, prompts(points, ((48, 80),), boxes=boxes))


def test_a_mask_input_gives_the_masks_of_transformers(cutter):
    picture = image(48, 80)
    mask = torch.randn(1, LOW, LOW, generator=torch.Generator().manual_seed(3)) * 4
    reference = sam2_reference(cutter.model, picture, ONE[:1], masks=mask[None])
    assert_same(cutter, picture, reference, prompts(ONE[:1], ((48, 80),), masks=mask))


@pytest.mark.parametrize("size", [(20, 300), (211, 33), (1, 57), (64, 1), (128, 128)])
def test_images_of_any_shape_give_the_masks_of_transformers(cutter, size):
    picture, (height, width) = image(*size), size
    points = [[(width * 0.7, height * 0.3, 1)]]
    reference = sam2_reference(cutter.model, picture, points)
    assert_same(cutter, picture, reference, prompts(points, (size,)))


def test_the_pixels_are_those_of_the_image_processor(cutter, hq):
    picture = image(37, 90)
    frame = cutter.resize(load_image(picture))
    theirs = Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})(picture, return_tensors="pt")
    level = 1.01 / 255 / 0.224  # one step of 8 bits, normalised
    made = cutter.preprocess([frame])
    torch.testing.assert_close(made, theirs["pixel_values"], atol=level, rtol=0)
    images = SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )
    theirs = images(picture, return_tensors="pt")
    made = hq.preprocess([hq.resize(load_image(picture))])
    torch.testing.assert_close(made, theirs["pixel_values"], atol=level, rtol=0)


def test_embeddings_are_those_of_transformers(cutter):
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    full, half, coarse = cutter.model.get_image_embeddings(pixels)
    for ours, theirs in zip(cutter.encode_image(pixels), (coarse, full, half), strict=True):
        # One image of theirs at a time: they don't keep images apart in a batch.
        assert ours.shape == theirs.shape
    for i in range(2):
        full, half, coarse = cutter.model.get_image_embeddings(pixels[i : i + 1])
        alone = cutter.encode_image(pixels[i : i + 1])
        for ours, theirs in zip(alone, (coarse, full, half), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_hieras_stages_are_those_of_transformers_in_every_precision():
    model = sam2().vision_encoder.backbone
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    exact = model(pixels).intermediate_hidden_states
    for ours, theirs in zip(encode_stages(model, pixels), exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    model.bfloat16()
    rough = model(pixels.bfloat16()).intermediate_hidden_states
    made = encode_stages(model, pixels.bfloat16())
    for ours, theirs, right in zip(made, rough, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - right).abs().mean() < 1.3 * (theirs - right).abs().mean()


def hq_reference(model, picture, points, boxes=None, masks=None):
    """As `sam2_reference`, but with the published decoder's steps behind the two-way transformer:
    transformers 5 upscales the image that goes into it, transposed."""
    images = SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )
    asked = SamHQProcessor(images)(
        images=as_read(picture),
        input_points=[[[[int(x), int(y)] for x, y, _ in own] for own in points]],
        input_labels=[[[label for *_, label in own] for own in points]],
        input_boxes=None if boxes is None else [boxes],
        return_tensors="pt",
    )
    decoder, seen = model.mask_decoder, {}
    hook = decoder.transformer.register_forward_hook(lambda _m, _a, out: seen.update(out=out))
    sizes, frames = asked.pop("original_sizes"), asked.pop("reshaped_input_sizes")
    with torch.no_grad():
        iou = model(**asked, input_masks=masks).iou_scores[0]  # sorted
        hook.remove()
        tokens, keys = (x.flatten(0, 1) for x in seen["out"])
        side = SIDE // 16
        x = keys.transpose(1, 2).unflatten(2, (side, side))
        x = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(x)))
        x = decoder.activation(decoder.upscale_conv2(x))
        image, (early, *_) = model.get_image_embeddings(asked["pixel_values"])
        fine = decoder.encoder_conv2(
            decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(image)))
        ) + decoder.compress_vit_conv2(
            decoder.activation(
                decoder.compress_vit_norm(decoder.compress_vit_conv1(early.permute(0, 3, 1, 2)))
            )
        )
        sharp = decoder.mask_conv1(x)
        sharp = decoder.mask_conv2(decoder.activation(decoder.mask_norm(sharp))) + fine
        own = [m(tokens[:, 1 + i]) for i, m in enumerate(decoder.output_hypernetworks_mlps)]
        sam = torch.einsum("pkc,pcij->pkij", torch.stack(own[1:], 1), x)
        added = torch.einsum("pc,pcij->pij", decoder.hq_mask_mlp(tokens[:, 5]), sharp)
        logits = sam + added[:, None]
    made = images.post_process_masks(logits[None], sizes, frames)
    return logits, iou, made[0]


@pytest.mark.parametrize("size", [(48, 80), (90, 31), (1, 57)])
@pytest.mark.parametrize("boxed", [False, True])
def test_sam_hq_gives_the_masks_of_its_published_decoder(hq, size, boxed):
    picture, (height, width) = image(*size), size
    points = [[(width * 0.7, height * 0.3, 1)], [(width * 0.2, height * 0.5, 1)]]
    boxes = [[0.0, 0.0, width * 0.6, height * 0.9]] * 2 if boxed else None
    logits, iou, masks = hq_reference(hq.model, picture, points, boxes)
    made = hq.decode(encoded(hq, picture), prompts(points, (size,), boxes=boxes))
    torch.testing.assert_close(made.logits, logits, atol=0.02 * logits.std().item(), rtol=0.01)
    ours, _ = made.predicted_iou.sort(dim=1, descending=True)
    torch.testing.assert_close(ours, iou, atol=0.02, rtol=0.01)
    ours = torch.cat(list(hq.upscale(made.logits.flatten(0, 1), size)))
    assert (ours == masks.flatten(0, 1)).float().mean() > 0.98


def test_a_prompts_candidates_do_not_depend_on_what_comes_with_it(cutter, hq):
    pictures = image(48, 80), image(70, 33, seed=1)
    sizes = tuple(p.shape[:2] for p in pictures)
    points = [*ONE, [(20.5, 60.5, 1), (4.5, 9.5, 0), (30.5, 1.5, 1)]]
    masks = torch.randn(3, LOW, LOW, generator=torch.Generator().manual_seed(3))
    boxes = [*BOXES, [1.0, 2.0, 30.0, 60.0]]
    for own in (cutter, hq):
        kept = encoded(own, *pictures)
        for extra in ({}, {"boxes": boxes}, {"masks": masks}, {"boxes": boxes, "masks": masks}):
            together = own.decode(kept, prompts(points, sizes, (2, 1), **extra))
            for i, where in enumerate((0, 0, 1)):
                alone = own.decode(
                    tuple(level[where : where + 1] for level in kept),
                    prompts(
                        points[i : i + 1],
                        sizes[where : where + 1],
                        **{name: rows[i : i + 1] for name, rows in extra.items()},
                    ),
                )
                made, right = together.logits[i], alone.logits[0]
                torch.testing.assert_close(made, right, atol=1e-4, rtol=1e-4)
                made, right = together.predicted_iou[i], alone.predicted_iou[0]
                torch.testing.assert_close(made, right, atol=1e-5, rtol=1e-5)


def test_an_image_without_prompts_has_no_row(cutter):
    kept = encoded(cutter, image(48, 80), image(70, 33, seed=1))
    asked = prompts(ONE, ((9, 9), (48, 80), (70, 33)), (0, 1, 1))
    alone = cutter.decode(kept, prompts(ONE, ((48, 80), (70, 33)), (1, 1)))
    assert torch.equal(cutter.decode(kept, asked).logits, alone.logits)
    none = replace(
        asked,
        coords=asked.coords[:0],
        point_labels=asked.point_labels[:0],
        label_index=asked.label_index[:0],
        counts=(0, 0, 0),
    )
    assert cutter.decode(kept, none).logits.shape == (0, 3, LOW, LOW)
    assert list(cutter.upscale(torch.zeros(0, LOW, LOW), (48, 80))) == []


def test_a_low_precision_is_that_of_the_vision_encoder_alone():
    for model in (sam2(), sam_hq()):
        own = clip2sam.load("tiny", sam=model, precision="bf16", device="cpu").sam
        assert own.dtype == torch.bfloat16
        rest = [n for n, p in model.named_parameters() if p.dtype != torch.float32]
        assert all(name.startswith("vision_encoder.") for name in rest)
        kept = encoded(own, image(48, 80))
        assert {level.dtype for level in kept} == {torch.float32}
        assert own.decode(kept, prompts(ONE, ((48, 80),))).logits.dtype == torch.float32


def test_a_run_with_sam2_writes_coco_and_remembers_the_model(tmp_path):
    (tmp_path / "images").mkdir()
    for i, size in enumerate(((90, 140), (120, 64))):
        canvas = np.full((*size, 3), 255, np.uint8)
        canvas[20:60, 10:50] = (220, 30, 30)
        Image.fromarray(canvas).save(tmp_path / "images" / f"{i}.png")
    segmenter = clip2sam.load("tiny", sam=sam2(), device="cpu")
    clip2sam.label_dataset(
        tmp_path / "images", ["red square"], tmp_path / "run", segmenter=segmenter
    )
    written = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert [(i["height"], i["width"]) for i in written["images"]] == [(90, 140), (120, 64)]
    assert {a["image_id"] for a in written["annotations"]} == {1, 2}
    labels = as_label_set(["red square"])
    prints = [
        SegmenterEngine(clip2sam.load("tiny", sam=m, device="cpu"), labels).fingerprint()
        for m in (sam2(), sam2(seed=1), edgetam(), sam_hq())
    ]
    assert len({p["weights"]["sam"] for p in prints}) == 4


# Weights


def test_the_architectures_have_the_published_widths():
    made = {}
    with torch.device("meta"):
        for name in transformers_sam.ARCHITECTURES:
            model = build(transformers, name)
            made[name] = sum(p.numel() for p in model.vision_encoder.parameters()) // 100_000
    # In 100,000 parameters, with the neck. With the parts for videos, too, the four of SAM 2.1 have
    # the sizes of the published files to the byte.
    assert made == {
        "sam2.1-t": 272,
        "sam2.1-s": 343,
        "sam2.1-b": 691,
        "sam2.1-l": 2127,
        "sam-hq-b": 896,
        "sam-hq-l": 3082,
        "sam-hq-h": 6370,
        "edgetam": 48,
    }


@pytest.fixture
def small(monkeypatch):
    """The small models in the place of the published architectures."""
    monkeypatch.setattr(
        transformers_sam,
        "build",
        lambda _, name: {"sam2.1-t": sam2, "edgetam": edgetam, "sam-hq-b": sam_hq}[name](),
    )


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "made"), [("sam2.1-t", sam2), ("edgetam", edgetam), ("sam-hq-b", sam_hq)]
)
def test_a_file_of_the_hub_is_loaded_without_what_is_for_videos(small, tmp_path, name, made):
    state = {k: v + 1 if v.is_floating_point() else v for k, v in state_of(made()).items()}
    extra = {"memory_encoder.x": torch.ones(2), "no_object_pointer": torch.ones(1)}
    save_file(state | extra, tmp_path / "model.safetensors")
    model = load_transformers_sam(name, tmp_path / "model.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_file_may_have_the_positional_encoding_once(small, tmp_path):
    state = state_of(sam2())
    del state["prompt_encoder.shared_embedding.positional_embedding"]
    save_file(state, tmp_path / "model.safetensors")
    model = load_transformers_sam("sam2.1-t", tmp_path / "model.safetensors")
    found = model.prompt_encoder.shared_embedding.positional_embedding
    assert torch.equal(found, state["shared_image_embedding.positional_embedding"])


def test_files_that_do_not_fit_are_refused(small, tmp_path):
    path, state = tmp_path / "model.safetensors", state_of(sam2())
    with pytest.raises(WeightsError, match=r"there is no file .*model.safetensors; give the path"):
        load_transformers_sam("sam2.1-t", path)
    path.write_bytes(b"<html>" * 9)
    with pytest.raises(WeightsError, match=r"can't be read as safetensors: .*model.safetensors of"):
        load_transformers_sam("sam2.1-t", path)
    save_file({k: v for k, v in state.items() if "neck" not in k}, path)
    with pytest.raises(WeightsError, match=r"lacks 8 tensors, such as vision_encoder.neck.convs.0"):
        load_transformers_sam("sam2.1-t", path)
    save_file(state | {"head.weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"also has 1 tensors, such as head.weight; name its"):
        load_transformers_sam("sam2.1-t", path)
    save_file(state | {"no_memory_embedding": torch.ones(3)}, path)
    with pytest.raises(WeightsError, match=r"does not fit sam2.1-t; .*no_memory_embedding"):
        load_transformers_sam("sam2.1-t", path)
    save_file(state | {"no_memory_embedding": torch.full((1, 1, 32), torch.nan)}, path)
    with pytest.raises(WeightsError, match=r"not finite, in the tensor no_memory_embedding"):
        load_transformers_sam("sam2.1-t", path)
    with pytest.raises(ConfigError, match=r"no architecture is called 'sam9'; choose one of sam2"):
        load_transformers_sam("sam9", path)


def test_a_preset_takes_a_checkpoint_of_the_users_own(small, tmp_path):
    save_file(state_of(sam2()), tmp_path / "own.safetensors")
    tiny = clip2sam.load("tiny", device="cpu").clip
    segmenter = clip2sam.load(
        "sam2.1-t",
        clip=tiny.model,
        sam_checkpoint=tmp_path / "own.safetensors",
        device="cpu",
        offline=True,
    )
    assert isinstance(segmenter.sam, SAM2)


def test_a_preset_tells_what_to_install(monkeypatch):
    def missing(name):
        raise ConfigError(f"{name} needs the package transformers: pip install it")

    monkeypatch.setattr("clip2sam.models.loading.needed_transformers", missing)
    with pytest.raises(ConfigError, match=r"the preset sam2.1-s needs the package transformers"):
        clip2sam.load("sam2.1-s", clip=clip2sam.load("tiny", device="cpu").clip.model)


def test_the_presets_name_pinned_files():
    for name in ("sam2.1-t", "sam2.1-s", "sam2.1-b", "sam2.1-l", "edgetam"):
        weights = PRESETS[name].sam
        assert weights.url.endswith(f"/{weights.hub}/resolve/{weights.revision}/model.safetensors")
        assert len(weights.revision) == 40
        assert len(weights.sha256) == 64
    files = [preset.sam.file for preset in PRESETS.values()]
    assert "sam2.1-hiera-tiny.safetensors" in files


def test_other_models_of_transformers_and_compiling_are_refused():
    other = sam2()
    other.config.model_type = "sam2_video"
    with pytest.raises(ConfigError, match=r"transformers' Sam2Model, which can't .* give its"):
        clip2sam.load("tiny", sam=other, device="cpu")
    with pytest.raises(ConfigError, match=r"compiled is for segment-anything's models, but sam is"):
        clip2sam.load("tiny", sam=sam2(), device="cpu", compiled=True)
    odd = sam2()
    odd.vision_encoder.neck.fpn_top_down_levels = [1, 2, 3]
    with pytest.raises(ConfigError, match=r"sam must merge the levels 2 and 3 .* merges \[1, 2, 3"):
        SAM2(odd)
