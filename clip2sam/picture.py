"""The first noun, in a room of its own: a decoded picture. Whoever only decodes needn't load PyTorch for the others."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PILImage


@dataclass(frozen=True)
class Image:
    """A decoded picture: RGB, orientation applied."""

    pixels: UInt8[np.ndarray, "height width 3"]
    origin: str
    """Where it came from, for messages and file names: a path, or a description such as "array"."""
    _ahead: dict[tuple[int, int, PILImage.Resampling], UInt8[np.ndarray, "rows cols 3"]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What was resized ahead, until it is asked for."""

    def resize_ahead(self, height: int, width: int, filter_: PILImage.Resampling) -> None:
        """Do now what `resized` will be asked for: in a reader's thread, while a model works."""
        self._ahead[height, width, filter_] = self._resize(height, width, filter_)

    def resized(self, height: int, width: int, filter_: PILImage.Resampling) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels at another size, by PIL. What was made ahead is given away."""
        ready = self._ahead.pop((height, width, filter_), None)
        return self._resize(height, width, filter_) if ready is None else ready

    def _resize(self, height: int, width: int, filter_: PILImage.Resampling) -> UInt8[np.ndarray, "height width 3"]:
        return np.array(PILImage.fromarray(self.pixels).resize((width, height), filter_))

    @property
    def nbytes(self) -> int:
        """Bytes of all its pixels, those resized ahead too."""
        return self.pixels.nbytes + sum(pixels.nbytes for pixels in list(self._ahead.values()))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def __repr__(self) -> str:
        height, width = self.size
        return f"Image({self.origin!r}, {height} x {width})"
