"""Numbers of 64 bits by which equal masks are found among hundreds of thousands. Two masks that
differ have the same one by a chance of 1 in 2**64."""

import numpy as np
from jaxtyping import Float, Int, UInt64


def scattered(numbers: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Each number's own of 64 bits: neighbours become unlike each other, so that sums of them tell
    sets of numbers apart. Multiplications and shifts as in a generator of random numbers: Steele et
    al., Fast splittable pseudorandom number generators, 2014."""
    numbers = (numbers + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(31)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(29)
    return numbers


def contents_of_runs(
    firsts: Int[np.ndarray, "runs"], ends: Int[np.ndarray, "runs"], starts: Int[np.ndarray, "masks"]
) -> UInt64[np.ndarray, "masks"]:
    """The same for the same pixels: runs of no length, and those that touch, cancel out.

    Args:
        firsts: the first pixel of each run inside a mask, down the columns.
        ends: the pixel behind it.
        starts: the first run of each mask.
    """
    edges = scattered(firsts.view(np.uint64)) - scattered(ends.view(np.uint64))
    return np.asarray(np.add.reduceat(edges, starts))


def contents_of_rings(
    points: Float[np.ndarray, "points 2"],
    after: Int[np.ndarray, "points"],
    starts: Int[np.ndarray, "rings"],
) -> UInt64[np.ndarray, "rings"]:
    """The same for the same edges, wherever the ring begins and whichever way it runs. Points that
    come twice in a row count once.

    Args:
        points: (x, y) of all rings.
        after: the index of the next point in the ring.
        starts: the first point of each ring.
    """
    bits = (points + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    corners = scattered(bits[:, 0] + scattered(bits[:, 1]))
    following = corners[after]
    edges = scattered(corners + following)
    edges[corners == following] = 0
    return scattered(np.asarray(np.add.reduceat(edges, starts)))
