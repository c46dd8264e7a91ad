"""A result as a COCO document of one image, and the schema of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from clip2sam.coco.document import coco_document
from clip2sam.coco.outlines import TOLERANCE
from clip2sam.data.files import as_json
from clip2sam.data.records import as_float32
from clip2sam.labelling.info import settings_info

if TYPE_CHECKING:
    from clip2sam.pipeline import Segmenter
    from clip2sam.result import Result


class Rle(BaseModel):
    """A mask in pycocotools' compressed form."""

    size: Annotated[list[int], Field(description="[height, width] in pixels.")]
    counts: str


class CocoImage(BaseModel):
    """The image."""

    id: int
    file_name: Annotated[str, Field(description='The form\'s file name; "image" without one.')]
    height: int
    width: int


class CocoCategory(BaseModel):
    """A label that was asked for."""

    id: int
    name: Annotated[str, Field(description="Exactly as typed.")]
    supercategory: str


class CocoAnnotation(BaseModel):
    """A mask."""

    id: int
    image_id: int
    category_id: int
    segmentation: Annotated[
        Rle | list[list[float]],
        Field(description="RLE, or polygons [x, y, x, y, ...] in pixels."),
    ]
    area: float
    bbox: Annotated[list[float], Field(description="[x, y, width, height] in pixels.")]
    iscrowd: int
    score: Annotated[float, Field(description="Of this mask, 0 to 1.")]
    share: Annotated[
        float, Field(description="How strong it is beside its label's best mask, 0 to 1.")
    ]
    presence: Annotated[
        float | None, Field(description="Presence score of its label: the highest raw score.")
    ] = None
    prompt: Annotated[
        list[list[float]] | None,
        Field(
            description="SAM's prompt: points [x, y, 1 (positive) or 0 (negative)] in pixels; 2 "
            "and 3 are a box's upper left and lower right corner."
        ),
    ] = None


class AbsentLabel(BaseModel):
    """A label without a mask."""

    label: str
    score: Annotated[float, Field(description="Its presence score.")]
    reason: str


class CocoAnswer(BaseModel):
    """A COCO dataset of one image, with `absent` and `remarks` beside COCO's own keys."""

    model_config = ConfigDict(extra="forbid")

    info: Annotated[dict[str, Any], Field(description="By what it was made, with which settings.")]
    licenses: list[Any]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]
    absent: Annotated[list[AbsentLabel], Field(description="Labels without a mask, and why.")]
    remarks: Annotated[
        list[str], Field(description="What looks wrong with the labels that were asked for.")
    ]


class Problem(BaseModel):
    """Why there is no result."""

    detail: str


def answer_of(
    result: "Result",
    segmenter: "Segmenter",
    *,
    preset: str,
    polygons: bool,
    tolerance: float | None,
    remarks: Sequence[str],
) -> bytes:
    """A result as JSON, see `CocoAnswer`: the same result gives the same bytes.

    Args:
        segmenter: with the settings of the request.
        preset: what it calls the models.
        remarks: on its labels.
    """
    labels, config = result.label_set, segmenter.config
    document = coco_document(
        [result.record],
        labels.wanted,
        polygons=polygons,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        info=settings_info(config, segmenter.locator.name, labels, preset=preset),
    )
    document["absent"] = [
        {"label": one.label, "score": as_float32(one.score), "reason": one.reason}
        for one in result.absent
    ]
    document["remarks"] = list(remarks)
    return as_json(document).encode()
