"""How sure a difference between two settings is: the paired bootstrap over images.

Source: Efron and Tibshirani, 1993, "An Introduction to the Bootstrap", chapter 13 (percentiles).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Figure = Callable[[Float[np.ndarray, "images"]], float]
"""A figure of some images, of which each counts as many times as its weight says."""


@dataclass(frozen=True)
class Difference:
    """A figure of other settings less that of the base."""

    value: float
    low: float
    high: float
    """95 % of the resampled differences lie between low and high. NaN if the figure is NaN."""

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    base: Figure, other: Figure, images: int, resamples: int = 1000, seed: int = 0
) -> Difference:
    """The difference of two settings' figures on the same images, with its 95 % interval.

    Each resample draws as many images as there are, with replacement, and takes both figures of
    them. AP is no mean over images, so it is computed anew each time.

    Args:
        base, other: give the figure for a weight of each image, (images,) in float64.
    """
    whole = np.ones(images)
    rng = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for i in range(resamples):
        weights = np.bincount(rng.integers(0, images, images), minlength=images).astype(float)
        differences[i] = other(weights) - base(weights)
    differences = differences[~np.isnan(differences)]  # samples without any object
    low, high = np.quantile(differences, [0.025, 0.975]) if len(differences) else [np.nan] * 2
    return Difference(other(whole) - base(whole), float(low), float(high))
