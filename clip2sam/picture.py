"""The first noun, in a room of its own: a decoded picture. Whoever only decodes needn't load PyTorch for the others."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Image:
    """A decoded picture: RGB, orientation applied."""

    pixels: UInt8[np.ndarray, "height width 3"]
    origin: str
    """Where it came from, for messages and file names: a path, or a description such as "array"."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def __repr__(self) -> str:
        height, width = self.size
        return f"Image({self.origin!r}, {height} x {width})"
