"""Small runs with records made by hand, for the page's tests."""

import numpy as np
from PIL import Image as PILImage

from clip2sam.coco.rle import encode_mask
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.data.sources import FileSource
from clip2sam.labelling.journal import Journal
from clip2sam.labelling.manifest import begin_run

HTML = "<img src=x onerror=alert(1)>\"&'"
SIZE = (40, 60)
CLASSES = (LabelClass("cat", ("cat", "kitten")), LabelClass(HTML, ("dog",)))


def box(x, y, width, height):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def found(label, mask, score=0.9, share=1.0):
    return Annotation(label, encode_mask(mask), score, ((1.5, 3.0, 1), (30.0, 3.0, 0)), share)


def record(image_id, name, presence, *annotations, beaten=(False, False)):
    return ImageRecord(
        image_id, name, SIZE, "done" if annotations else "empty", "", annotations, presence, beaten
    )


def make_run(folder, records, listed=None, *, thresholds=(0.5, 0.3), source=None):
    """A run below `folder`, and its images beside it.

    Args:
        listed: names and ids of all images; by default those of the records.
        source: one of your own, in the place of these images.
    """
    listed = listed or [(r.file_name, r.image_id) for r in records]
    keys, ids = zip(*listed, strict=True)
    images, output = folder / "images", folder / "run"
    images.mkdir()
    output.mkdir()
    for n, key in enumerate(keys):
        grey = np.full((*SIZE, 3), 90 + n % 100, np.uint8)
        (images / key).parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(grey).save(images / key, "PNG")
    run = begin_run(
        output,
        source or FileSource(str(images), str(images), keys, ids),
        CLASSES,
        {"preset": "by hand", "engine": {"config": {"grid": 8}}},
        thresholds=thresholds,
        floors=[None if t is None else 0.9 * t for t in thresholds],
        min_share=0.5,
        threads=1,
    )
    journal = Journal(run.journal, ids, run.class_names)
    for one in records:
        journal.append(one)
    journal.close()
    return output
