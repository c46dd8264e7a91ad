"""The C library's allocator, told to give memory back."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Of mallopt, in glibc's malloc.h."""

OPTIONS = ((ARENA_MAX, 2), (MMAP_THRESHOLD, 1 << 20), (TRIM_THRESHOLD, 1 << 20))
"""By default each thread has an area of its own, and the limit above which a block goes back to the
system at once grows with the blocks that are freed: after thousands of requests whose sizes differ
much of it lies between blocks in use."""


def keep_flat() -> bool:
    """Few areas, and blocks of a megabyte go back when they are freed. To be called in front of the
    threads that work.

    Returns:
        Whether the C library has taken it; only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl and macOS have none, Windows takes no None
        return False
    taken = [mallopt(option, value) for option, value in OPTIONS]  # each, also behind a refusal
    return all(taken)
