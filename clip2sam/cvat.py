"""CVAT's automatic annotation by clip2sam: a function for cvat-cli and for its agents.

    cvat-cli task auto-annotate 123 --function-module clip2sam.cvat \\
        -p labels=str:"person,traffic light" -p preset=str:vit-h

cvat-cli calls `create` with the parameters that follow -p, and `detect` for each image of the task.

Source of the protocol: https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation/
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image as PILImage

from clip2sam.coco.outlines import TOLERANCE, outline_of, tolerance_of
from clip2sam.coco.rle import decode_rle
from clip2sam.data.images import load_image, printable
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.records import Annotation
from clip2sam.errors import ConfigError, ImageError, ModelError
from clip2sam.labelling.failures import ModelFailures, for_one_image
from clip2sam.models.loading import load
from clip2sam.pipeline import Segmenter

try:
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk.masks import encode_mask
    from cvat_sdk.models import LabeledShapeRequest
except ImportError as missing:
    raise ConfigError(
        "clip2sam.cvat needs the package cvat-sdk: pip install 'clip2sam[cvat]'"
    ) from missing

log = logging.getLogger(__name__)

FILES = (".txt", ".yaml", ".yml", ".json")
"""Labels that end in one of these are a labels file."""


class DetectionFunction:
    """What CVAT's driver calls: `spec` says which labels there are, `detect` finds them.

    Args:
        segmenter: the models and settings.
        labels: checked labels. CVAT knows them by their names, as they are typed.
        polygons: give polygons, also where CVAT has not asked for them.
        tolerance: of polygons, in pixels, see `clip2sam.coco.outlines`; 0: exact.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        labels: LabelSet,
        *,
        polygons: bool = False,
        tolerance: float = TOLERANCE,
    ) -> None:
        segmenter.look_at(labels)
        self._segmenter, self._labels = segmenter, labels
        self._polygons, self._tolerance = polygons, tolerance
        self._ids = {c.name: i for i, c in enumerate(labels.wanted, 1)}
        self._in_a_row = ModelFailures()
        kind = "polygon" if polygons else "mask"
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(name, i, type=kind) for name, i in self._ids.items()]
        )

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PILImage
    ) -> list[LabeledShapeRequest]:
        """The masks of an image, or the polygons, with their scores.

        An image that can't be used, or that the model fails on, costs that image: it gets no
        shapes, and a warning is logged. All else would cost the task's other images too, as CVAT's
        driver uploads what was found when it has been through all of them.

        Args:
            context: its `conf_threshold` is the least score of a mask, its `conv_mask_to_poly` asks
                for polygons.
            image: in any of Pillow's modes; turned upright if its EXIF data say so.

        Raises:
            RunError: the model failed on several images in a row.
        """
        name = printable(context.frame_name)
        try:
            annotations = for_one_image(partial(self._annotations, image))
        except ImageError as error:
            log.warning("%s gets no annotations: %s", name, error)
            return []
        except ModelError as error:
            log.warning("%s gets no annotations: %s", name, error)
            self._in_a_row.add(str(error))
            return []
        self._in_a_row.clear()
        least = context.conf_threshold or 0.0
        found = [annotation for annotation in annotations if annotation.score >= least]
        if self._polygons or context.conv_mask_to_poly:
            return [s for n, a in enumerate(found, 1) for s in self._outline(a, n)]
        return [self._mask(annotation) for annotation in found]

    def _annotations(self, image: PILImage) -> Sequence[Annotation]:
        features = self._segmenter.encode([load_image(image)])
        (result,) = self._segmenter.segment(features, self._labels)
        return result.annotations

    def _mask(self, annotation: Annotation) -> LabeledShapeRequest:
        points = encode_mask(decode_rle(annotation.rle))
        return cvataa.mask(self._ids[annotation.label], points, score=annotation.score)

    def _outline(self, annotation: Annotation, number: int) -> list[LabeledShapeRequest]:
        """A polygon for each part of a mask; parts of one have its number in the image as their
        group."""
        polygons = outline_of(annotation.rle, self._tolerance).polygons
        group = {"group": number} if len(polygons) > 1 else {}
        label = self._ids[annotation.label]
        return [cvataa.polygon(label, p, score=annotation.score, **group) for p in polygons]


def create(
    *,
    labels: str | Sequence[str],
    preset: str,
    distractors: str | Sequence[str] = (),
    method: str | None = None,
    presence_threshold: float | None = None,
    max_objects: int | None = None,
    min_share: float | None = None,
    one_mask: bool = False,
    tile: int | str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    weights_dir: str | None = None,
    offline: bool = False,
    polygons: bool = False,
    tolerance: float | None = None,
) -> DetectionFunction:
    """The function that cvat-cli asks for. Its parameters are those of the command line.

    Args:
        labels: names with commas between them, blanks around which don't count; or a labels file
            (.txt, .yaml, .yml or .json), as `as_label_set` takes it, also for names with commas.
        preset: see `clip2sam.load`, as for `method`, `device`, `precision`, `weights_dir` and
            `offline`.
        distractors: names with commas between them: they compete with the labels and get no mask.
        presence_threshold, max_objects, min_share, tile: in place of the preset's, see `Config`.
        one_mask: one mask a label, see `Config.prompts`.
        polygons: give polygons, also without --conv-mask-to-poly.
        tolerance: of polygons, in pixels; by default 1; 0: exact.

    Raises:
        LabelError: a label that can't be used, or a labels file that isn't there.
        ConfigError: an unknown preset, method or device, or a setting out of range.
        WeightsError: weights that are missing, damaged, or can't be downloaded.
    """
    label_set = as_label_set(_given(labels), distractors=_names(distractors))
    pixels = tolerance_of(tolerance, polygons=polygons or tolerance is not None)
    segmenter = load(
        preset,
        method=method,
        device=device,
        precision=precision,
        weights_dir=weights_dir,
        offline=offline,
    )
    settings: dict[str, Any] = {
        "presence_threshold": presence_threshold,
        "max_objects": max_objects,
        "min_share": min_share,
        "prompts": "label" if one_mask else None,
        "tile": int(tile) if str(tile).isdecimal() else tile,  # type: ignore[arg-type]
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return DetectionFunction(
        segmenter.with_config(**given), label_set, polygons=polygons, tolerance=pixels
    )


def _given(labels: str | Sequence[str]) -> Path | Sequence[str]:
    if isinstance(labels, str) and labels.lower().endswith(FILES):
        return Path(labels)
    return _names(labels)


def _names(names: str | Sequence[str]) -> Sequence[str]:
    """Names that are typed in one text: cvat-cli takes a parameter once, and as a text."""
    if not isinstance(names, str):
        return names
    return [name.strip() for name in names.split(",")] if names.strip() else []
