"""Stand-ins for models and decode workers: quick, deterministic, and able to fail when told to."""

import os
import signal
import threading

import numpy as np
from PIL import Image as PILImage

import clip2sam
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.coco.rle import encode_mask
from clip2sam.data.images import MAX_PIXELS
from clip2sam.data.records import Annotation, as_float32
from clip2sam.labelling.decode_worker import load_named
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from tests.models import small_clip, small_sam


class Threshold:
    """An engine whose classes are red, green and blue: the mask of a colour is where it is above
    128, its presence its mean."""

    classes = ("red", "green", "blue")

    def __init__(self, group=4, threshold=0.5):
        self.group = group
        self.thresholds = (threshold,) * 3
        self.floors = (None,) * 3
        self.min_share = 0.0
        self.batches: list[int] = []
        self.seen: list[str] = []

    def fingerprint(self):
        return {"engine": "threshold", "thresholds": list(self.thresholds)}

    def prepare(self, image):
        return image

    def predict(self, prepared):
        self.batches.append(len(prepared))
        self.seen += [image.origin for image in prepared]
        return [image.pixels > 128 for image in prepared]

    def finish(self, image, prediction):
        presence = tuple(as_float32(image.pixels[..., c].mean() / 255) for c in range(3))
        annotations = tuple(
            Annotation(name, encode_mask(prediction[..., c]), presence[c], ((0.5, 0.5, 1),))
            for c, name in enumerate(self.classes)
            if prediction[..., c].any()
        )
        return presence, (False,) * 3, annotations


class Noting(Threshold):
    """It leaves a file in a folder, named by its process, with a dot for each image that it was
    given. The first one kills its process at the fifth."""

    def __init__(self, folder):
        super().__init__(group=1)
        self.file, self.first = folder / str(os.getpid()), not any(folder.iterdir())
        self.file.touch()

    def predict(self, prepared):
        with self.file.open("a") as file:
            file.write("." * len(prepared))
        if self.first and self.file.stat().st_size >= 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(prepared)


class Here:
    """A decode worker in the reader's own thread: no process is started, nothing is limited but
    the number of pixels."""

    def __init__(self, max_pixels=MAX_PIXELS, timeout=60.0, budget=None):
        self.max_pixels = max_pixels

    def decode(self, data, key):
        return load_named(data, key, self.max_pixels)

    def stop(self):
        """There is nothing to release."""


def reads(folder):
    """From a key to the path of an image below the folder, as `Source.read`."""
    return lambda key: os.path.join(folder, key)


def write_images(folder, count, *, side=24, first=0):
    """Small random PNGs 000.png, 001.png, ...; their sizes differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (side + i % 5, side + i % 7, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{i:03d}.png", compress_level=1)
    return folder


def small_segmenter(*, clip_resolution=None, **changes):
    """The real pipeline on small seeded models: about half of all labels are found."""
    return Segmenter(
        SurgeryCLIP(small_clip(), resolution=clip_resolution),
        PromptSAM(small_sam()),
        clip2sam.Config(**{"presence_threshold": 0.02, **changes}),
    )


def traced_segmenter(trace):
    """The same; it appends a dot to a file for each image that its model is given."""
    segmenter = small_segmenter()
    real = segmenter.encode

    def encode(batch, **settings):
        file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, b"." * len(batch))
        os.close(file)
        return real(batch, **settings)

    segmenter.encode = encode
    return segmenter


def threads_named(*starts):
    """Threads alive whose names begin so."""
    return [t.name for t in threading.enumerate() if t.name.startswith(starts)]
