"""Stand-ins for models and decoders: quick, deterministic, and able to fail when told to."""

import os
import threading

import numpy as np

import clip2sam
from clip2sam.clip import SurgeryCLIP
from clip2sam.coco.document import encode_mask
from clip2sam.data.images import load_image
from clip2sam.data.records import FoundMask
from clip2sam.labelling.engine import shortest
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PointSAM
from tests.models import small_clip, small_sam


class Threshold:
    """An engine whose classes are red, green and blue: the mask of a colour is where it is above 128."""

    def __init__(self, group=4):
        self.group = group
        self.batches: list[int] = []
        self.seen: list[str] = []

    def prepare(self, image):
        """Nothing to do ahead."""

    def predict(self, images):
        self.batches.append(len(images))
        self.seen += [image.origin for image in images]
        return [image.pixels > 128 for image in images]

    def finish(self, image, prediction):
        presence = tuple(shortest(image.pixels[..., c].mean() / 255) for c in range(3))
        masks = tuple(
            FoundMask(
                c,
                encode_mask(prediction[..., c])["counts"],
                shortest(presence[c]),
                ((0.5, 0.5, 1),),
            )
            for c in range(3)
            if prediction[..., c].any()
        )
        return presence, masks


class Here:
    """A decoder in the reader's own thread."""

    def __init__(self, root):
        self.root = root

    def decode(self, key):
        image = load_image(os.path.join(self.root, key))
        return clip2sam.Image(image.pixels, key)

    def stop(self):
        """There is nothing to let go of."""


def write_pictures(folder, count, *, side=24, first=0):
    """Small random PNGs 000.png, 001.png, ...; their sizes differ."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (side + i % 5, side + i % 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png", compress_level=1)
    return folder


def small_segmenter(presence=0.02):
    """The real pipeline on small seeded models: about half of all labels are found."""
    return Segmenter(
        SurgeryCLIP(small_clip()), PointSAM(small_sam()), clip2sam.Config(presence=presence)
    )


def threads_named(*starts):
    """Threads alive whose names begin so."""
    return [t.name for t in threading.enumerate() if t.name.startswith(starts)]
