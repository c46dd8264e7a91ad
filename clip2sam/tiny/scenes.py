"""Seeded scenes: images of coloured, textured shapes on clutter, with exact masks and true labels.

The tiny models are trained on them; tests, the demo and the evaluation use them. A scene depends on
its seed, size and ranges alone. Images are RGB uint8 (height, width, 3), masks bool (height,
width). Besides the plain `scene` there are scenes that ask more of a method with a mask for every
object: `crowd_scene`, `several_scene` and `large_scene`; `split_seed` says which seeds are whose.

A label is up to three words: a colour, a texture and a shape, in this order, each of them optional,
or "thing" in the place of the shape: "heart", "red thing", "striped star", "red dotted circle".
"""

import colorsys
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from clip2sam.errors import ConfigError, LabelError

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "moon",
    "arrow",
    "diamond",
)
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("solid", "striped", "dotted")
KINDS = ("shape", "colour", "texture + shape", "colour + shape")

# Hue in degrees, saturation and value, each as (lowest, highest).
_HSV: Mapping[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 6), (0.85, 1.0), (0.75, 0.95)),
    "orange": ((24, 32), (0.85, 1.0), (0.9, 1.0)),
    "yellow": ((51, 58), (0.8, 1.0), (0.9, 1.0)),
    "green": ((110, 140), (0.7, 1.0), (0.5, 0.75)),
    "cyan": ((176, 188), (0.7, 1.0), (0.8, 1.0)),
    "blue": ((218, 232), (0.8, 1.0), (0.7, 0.95)),
    "purple": ((270, 285), (0.6, 0.85), (0.5, 0.75)),
    "pink": ((324, 336), (0.35, 0.5), (0.95, 1.0)),
}

SCENE_KINDS = ("plain", "crowd", "several", "large")

# Every split has a range of seeds of its own, and in it every kind of scene: no two share a seed.
# Settings are chosen on validation scenes; figures are those of test scenes.
#
#              plain                    crowd            several          large
#   train               0 +         0   + 700,000,000    + 800,000,000    + 900,000,000
#   validation  1,000,000,000 +     0   + 700,000,000    + 800,000,000    + 900,000,000
#   test        2,000,000,000 +     0   + 700,000,000    + 800,000,000    + 900,000,000
_SPLITS = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
_KIND_RANGES = {
    "plain": (0, 700_000_000),
    "crowd": (700_000_000, 800_000_000),
    "several": (800_000_000, 900_000_000),
    "large": (900_000_000, 1_000_000_000),
}


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene."""

    shape: str
    colour: str
    texture: str
    mask: Bool[np.ndarray, "height width"]
    """Its visible part: what no later object covers."""


@dataclass(frozen=True)
class Scene:
    """An image and its objects, in drawing order: a later object covers an earlier one."""

    seed: int
    pixels: UInt8[np.ndarray, "height width 3"]
    objects: tuple[SceneObject, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def split_seed(split: str, index: int, kind: str = "plain") -> int:
    """The seed of scene `index` of a split, "train", "validation" or "test", and of one of the
    SCENE_KINDS. No two of them share a seed.

    Raises:
        ConfigError: another split or kind, or an index outside 0 to 699,999,999 (99,999,999 where
            the kind is not "plain").
    """
    if split not in _SPLITS:
        raise ConfigError(
            f'expected the split "train", "validation" or "test", got {split!r}: use one of them'
        )
    if kind not in _KIND_RANGES:
        raise ConfigError(
            f"expected a kind of scene out of {', '.join(SCENE_KINDS)}, got {kind!r}: use one of "
            "them"
        )
    start, end = _KIND_RANGES[kind]
    if not 0 <= index < end - start:
        raise ConfigError(
            f"expected an index from 0 to {end - start - 1}, got {index}: the seeds of {kind} "
            "scenes of a split end there"
        )
    return _SPLITS[split] + start + index


def split_scene(split: str, index: int, kind: str = "plain") -> Scene:
    """Scene `index` of a split and kind, in that kind's own sizes and ranges.

    Raises:
        ConfigError: as `split_seed`.
    """
    draw = {"plain": scene, "crowd": crowd_scene, "several": several_scene, "large": large_scene}
    seed = split_seed(split, index, kind)
    return draw[kind](seed)


def scene(
    seed: int,
    size: int | tuple[int, int] = 224,
    *,
    objects: tuple[int, int] = (0, 6),
    radius: tuple[float, float] | None = None,
) -> Scene:
    """Draw the scene of a seed.

    Args:
        size: the side of a square, or (height, width), in pixels; at least 32 each.
        objects: the least and the greatest number of objects (fewer are drawn where no room is
            left).
        radius: the least and the greatest radius of an object in pixels; by default 9 % to 25 % of
            the shorter side. The period of stripes and dots is proportional to the least.

    Raises:
        ConfigError: a size or range that can't be drawn.
    """
    height, width = _checked_size(size)
    _check_range("objects", objects)
    low, high = radius or (0.09 * min(height, width), 0.25 * min(height, width))
    if not 0 < low <= high <= min(height, width) / 2:
        raise ConfigError(
            f"expected 0 < least radius <= greatest <= half the shorter side, got {(low, high)}"
        )
    canvas = _Canvas(np.random.default_rng(seed), height, width, low / 20)
    for _ in range(canvas.whole(objects)):
        names = _name_object(canvas.rng, canvas.objects)
        canvas.add(names, (low, high))
    return canvas.scene(seed)


def crowd_scene(
    seed: int,
    size: int | tuple[int, int] = 224,
    *,
    objects: tuple[int, int] = (5, 12),
    radius: tuple[float, float] = (0.06, 0.15),
) -> Scene:
    """Draw a scene of many objects.

    Args:
        size, objects: as for `scene`.
        radius: the least and the greatest radius of an object, as shares of the shorter side.

    Raises:
        ConfigError: a size or range that can't be drawn.
    """
    side = min(_checked_size(size))
    return scene(seed, size, objects=objects, radius=(radius[0] * side, radius[1] * side))


def several_scene(
    seed: int,
    size: int | tuple[int, int] = 224,
    *,
    repeats: tuple[int, int] = (2, 5),
    others: tuple[int, int] = (0, 3),
    radius: tuple[float, float] = (0.07, 0.16),
) -> Scene:
    """Draw a scene with several objects of the same shape, colour and texture, and some others.

    In half of the scenes the repeated objects are copies of one look (the same hue, and the same
    stripes or dots), in the others each has its own; their places, sizes and rotations are always
    their own.

    Args:
        size: as for `scene`.
        repeats: the least and the greatest number of objects of the repeated combination.
        others: the same of all other objects, which may share two of the three names.
        radius: the least and the greatest radius of an object, as shares of the shorter side.

    Raises:
        ConfigError: a size or range that can't be drawn.
    """
    height, width = _checked_size(size)
    _check_range("repeats", repeats)
    _check_range("others", others)
    low, high = (share * min(height, width) for share in _checked_shares("radius", radius, 0.5))
    canvas = _Canvas(np.random.default_rng(seed), height, width, low / 20)
    rng = canvas.rng
    repeated = _name_object(rng, ())
    copies = rng.random() < 0.5
    look = int(rng.integers(2**32))
    plan = [repeated] * canvas.whole(repeats) + [None] * canvas.whole(others)
    for place in rng.permutation(len(plan)):
        names = plan[place]
        exact = copies and names is not None
        canvas.add(
            names or _other_than(repeated, rng, canvas.objects),
            (low, high),
            np.random.default_rng(look) if exact else None,
        )
    return canvas.scene(seed)


def large_scene(
    seed: int,
    *,
    side: tuple[int, int] = (448, 896),
    objects: tuple[int, int] = (3, 10),
    share: tuple[float, float] = (0.005, 0.02),
) -> Scene:
    """Draw a large image of small objects. Half of the images are squares of the least side; in
    the others height and width are drawn from the range.

    Args:
        side: the least and the greatest side in pixels, at least 32.
        objects: as for `scene`.
        share: the least and the greatest area of an object as a share of the image's, before the
            border or a later object cuts it. The period of stripes and dots suits the least.

    Raises:
        ConfigError: a size or range that can't be drawn.
    """
    _check_range("side", side)
    _check_range("objects", objects)
    low, high = _checked_shares("share", share, 0.2)
    rng = np.random.default_rng((seed, 2))  # the size must be known before the scene is begun
    drawn = rng.integers(side[0], side[1] + 1, 2) if rng.random() < 0.5 else (side[0], side[0])
    height, width = _checked_size((int(drawn[0]), int(drawn[1])))
    area = height * width
    canvas = _Canvas(np.random.default_rng(seed), height, width, math.sqrt(low * area / 2) / 20)
    for _ in range(canvas.whole(objects)):
        names = _name_object(canvas.rng, canvas.objects)
        unit = _unit_area(names[0])
        canvas.add(names, (math.sqrt(low * area / unit), math.sqrt(high * area / unit)))
    return canvas.scene(seed)


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 32:
        raise ConfigError(
            f"expected a scene of at least 32 x 32 pixels, got {height} x {width}: make it larger"
        )
    return height, width


def _check_range(name: str, numbers: tuple[int, int]) -> None:
    if not 0 <= numbers[0] <= numbers[1]:
        raise ConfigError(
            f"expected {name}=(least, greatest) with 0 <= least <= greatest, got {numbers}"
        )


def _checked_shares(name: str, shares: tuple[float, float], most: float) -> tuple[float, float]:
    if not 0 < shares[0] <= shares[1] <= most:
        raise ConfigError(
            f"expected {name}=(least, greatest) with 0 < least <= greatest <= {most}, got {shares}"
        )
    return shares


# Drawing


@lru_cache(maxsize=1)
def _noise_bank() -> Float[np.ndarray, "rows cols 3"]:
    """Normal noise, drawn once: a crop of it is ten times faster than new noise for each image."""
    return np.random.default_rng(7).standard_normal((1024, 1024, 3), dtype=np.float32)


def _noise(
    rng: np.random.Generator, height: int, width: int
) -> Float[np.ndarray, "height width 3"]:
    bank = _noise_bank()
    if height > bank.shape[0] or width > bank.shape[1]:
        return rng.standard_normal((height, width, 3), dtype=np.float32)
    top, left = (
        rng.integers(0, bank.shape[0] - height + 1),
        rng.integers(0, bank.shape[1] - width + 1),
    )
    return bank[top : top + height, left : left + width]


def _background(
    rng: np.random.Generator, height: int, width: int
) -> Float[np.ndarray, "height width 3"]:
    """Muted clouds of two scales, then clutter: blobs and lines that no label describes."""
    cells = int(rng.integers(12, 40))
    coarse, fine = (_clouds(rng, n) for n in (4, cells))
    small = (
        16.0 * cv2.resize(coarse, (cells, cells), interpolation=cv2.INTER_LINEAR)
        + rng.uniform(2, 12) * fine
    )
    small += rng.uniform(60, 190) + rng.uniform(-18, 18, 3)
    pixels = cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    side = min(height, width)
    for _ in range(int(rng.integers(3, 14))):
        colour = np.clip(rng.uniform(30, 220) + rng.uniform(-20, 20, 3), 0, 255).tolist()
        centre = rng.uniform(0, 1, 2) * (width, height)
        if rng.random() < 0.5:
            corners = int(rng.integers(5, 9))
            angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
            reach = rng.uniform(0.02, 0.2, corners) * side
            outline = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
            cv2.fillPoly(pixels, [_fixed(outline)], colour, cv2.LINE_8, _SHIFT)
        else:
            ends = np.stack([centre, centre + rng.uniform(-0.6, 0.6, 2) * side])
            cv2.polylines(
                pixels, [_fixed(ends)], False, colour, int(rng.integers(1, 5)), cv2.LINE_8, _SHIFT
            )
    return pixels


def _clouds(rng: np.random.Generator, cells: int) -> Float[np.ndarray, "cells cells 3"]:
    """Random tones with a little tint, one for each cell."""
    tone = rng.standard_normal((cells, cells, 1), dtype=np.float32)
    return tone + np.float32(0.3) * rng.standard_normal((cells, cells, 3), dtype=np.float32)


_SHIFT = 4  # cv2 takes corners as fixed-point integers with this many fractional bits


def _fixed(corners: Float[np.ndarray, "corners 2"]) -> np.ndarray:
    """Corners (x, y), with the first pixel's centre at (0, 0), in cv2's fixed point."""
    return np.round(corners * (1 << _SHIFT)).astype(np.int32)


def _circle(radius: float = 1.0, count: int = 40) -> np.ndarray:
    angles = np.arange(count) * (2 * math.pi / count)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _moon() -> np.ndarray:
    """A disc of radius 1 minus a disc of radius 0.85 whose centre lies 0.7 to the right."""
    x = (1 - 0.85**2 + 0.7**2) / (2 * 0.7)
    outer, inner = math.acos(x), math.atan2(math.sqrt(1 - x * x), x - 0.7)
    back = np.linspace(outer, 2 * math.pi - outer, 30)
    front = np.linspace(2 * math.pi - inner, inner, 22)[1:-1]
    arc = np.stack([0.7 + 0.85 * np.cos(front), 0.85 * np.sin(front)], 1)
    outline = np.concatenate([np.stack([np.cos(back), np.sin(back)], 1), arc])
    return outline + np.array([0.3, 0.0])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], 1) / 16


def _outlines() -> dict[str, list[np.ndarray]]:
    """Contours (x right, y down) of each shape, about as large as the unit circle. A second contour
    is a hole."""
    a = 0.36
    star = _circle(1.0, 10) * np.where(np.arange(10) % 2 == 0, 1.1, 0.48)[:, None]
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])  # (x, y) -> the same turned by 90 degrees
    return {
        "circle": [0.92 * _circle()],
        "square": [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.82],
        "triangle": [1.1 * _circle(1.0, 3) @ quarter],
        "star": [star @ quarter],
        "heart": [_heart()],
        "cross": [np.array([[-a, -1], [a, -1], [a, -a], [1, -a], [1, a], [a, a], [a, 1], [-a, 1],
                            [-a, a], [-1, a], [-1, -a], [-a, -a]])],
        "ring": [_circle(), _circle(0.5)],
        "moon": [_moon()],
        "arrow": [np.array([[1.05, 0], [0.15, -0.85], [0.15, -0.36], [-0.95, -0.36], [-0.95, 0.36],
                            [0.15, 0.36], [0.15, 0.85]])],
        "diamond": [np.array([[0, -1.15], [0.66, 0], [0, 1.15], [-0.66, 0]])],
    }  # fmt: skip


_OUTLINES = _outlines()


def _name_object(rng: np.random.Generator, drawn: Sequence[SceneObject]) -> tuple[str, str, str]:
    """(shape, colour, texture), each at random; in 30 % two of them are an earlier object's."""
    names = [str(rng.choice(SHAPES)), str(rng.choice(COLOURS)), str(rng.choice(TEXTURES))]
    if drawn and rng.random() < 0.3:
        twin = drawn[int(rng.integers(len(drawn)))]
        own = int(rng.integers(3))
        names = [
            n if i == own else t for i, (n, t) in enumerate(zip(names, _names(twin), strict=True))
        ]
    return names[0], names[1], names[2]


def _other_than(
    taken: tuple[str, str, str], rng: np.random.Generator, drawn: Sequence[SceneObject]
) -> tuple[str, str, str]:
    """`_name_object`, but never these three."""
    while (names := _name_object(rng, drawn)) == taken:
        pass
    return names


def _names(item: SceneObject) -> tuple[str, str, str]:
    return item.shape, item.colour, item.texture


def _unit_area(shape: str) -> float:
    """The area of a shape of radius 1, without its hole."""
    outer, *holes = (abs(cv2.contourArea(c.astype(np.float32))) for c in _OUTLINES[shape])
    return outer - sum(holes)


class _Canvas:
    """A scene that is being drawn.

    Args:
        rng: the scene's own; every draw of it counts, in this order, or the scene is another one.
        unit: of the period of stripes and dots, which is 9 to 15 times as many pixels.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, unit: float) -> None:
        self.rng, self.unit = rng, unit
        self.pixels = _background(rng, height, width)
        self.objects: list[SceneObject] = []
        self._areas: list[int] = []  # of the whole objects

    def whole(self, numbers: tuple[int, int]) -> int:
        """One of the whole numbers from the least to the greatest."""
        return int(self.rng.integers(numbers[0], numbers[1] + 1))

    def add(
        self,
        names: tuple[str, str, str],
        radius: tuple[float, float],
        look: np.random.Generator | None = None,
    ) -> None:
        """Draw one more object of this shape, colour and texture, at a place where at least 70 % of
        every other object stays visible. Nothing is drawn if six tries find no such place.

        Args:
            radius: the least and the greatest in pixels.
            look: gives hue, light, stripes and dots; None: the scene's own generator.
        """
        height, width = self.pixels.shape[:2]
        rng = self.rng
        shape, colour, texture = names
        for _ in range(6):
            r = math.exp(rng.uniform(math.log(radius[0]), math.log(radius[1])))
            centre = rng.uniform(0.7 * r, (width - 0.7 * r, height - 0.7 * r))
            angle = rng.uniform(-math.pi / 4, math.pi / 4)
            stretch = math.sqrt(rng.uniform(0.8, 1.25))
            cos, sin = math.cos(angle), math.sin(angle)
            turn = np.array([[cos, sin], [-sin, cos]])
            contours = [(c * (stretch, 1 / stretch) * r) @ turn + centre for c in _OUTLINES[shape]]
            left, top = (int(max(0, v)) for v in np.floor(contours[0].min(0)) - 1)
            right, bottom = (
                int(v) for v in np.minimum(np.ceil(contours[0].max(0)) + 2, (width, height))
            )
            cover = np.zeros((bottom - top, right - left), np.uint8)
            corners = [_fixed(c - (left, top)) for c in contours]
            cv2.fillPoly(cover, corners, 255, cv2.LINE_AA, _SHIFT)
            inside = cover >= 128
            window = (slice(top, bottom), slice(left, right))
            if self._leaves_enough(window, inside):
                break
        else:
            return
        for earlier in self.objects:
            earlier.mask[window] &= ~inside
        mask = np.zeros((height, width), bool)
        mask[window] = inside
        paint = _paint(look or rng, colour, texture, inside.shape, self.unit)
        alpha = cover.astype(np.float32) / 255
        self.pixels[window] += cv2.merge([alpha] * 3) * (paint - self.pixels[window])
        self.objects.append(SceneObject(shape, colour, texture, mask))
        self._areas.append(int(inside.sum()))

    def _leaves_enough(
        self, window: tuple[slice, slice], inside: Bool[np.ndarray, "high wide"]
    ) -> bool:
        """Whether at least 70 % of every object stays visible under a new one."""
        return all(
            int(o.mask.sum()) - int((o.mask[window] & inside).sum()) >= 0.7 * area
            for o, area in zip(self.objects, self._areas, strict=True)
        )

    def scene(self, seed: int) -> Scene:
        """The scene, lit."""
        return Scene(seed, _light(self.rng, self.pixels), tuple(self.objects))


def _paint(
    rng: np.random.Generator, colour: str, texture: str, shape: tuple[int, int], unit: float
) -> Float[np.ndarray, "height width 3"]:
    """The object's surface: its colour, with stripes or dots of a light or dark grey, under a
    linear light gradient."""
    hue, saturation, value = (rng.uniform(*limits) for limits in _HSV[colour])
    ink = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    y, x = np.ogrid[: shape[0], : shape[1]]
    y, x = y.astype(np.float32), x.astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    slope = rng.uniform(-0.25, 0.25) * (along - along.mean()) / max(shape)
    light = (255 + 255 * slope).astype(np.float32, copy=False)
    if texture == "solid":
        return cv2.merge([light * np.float32(channel) for channel in ink])
    period, phase = np.float32(rng.uniform(9, 15) * max(unit, 0.5)), rng.uniform(0, 1, 2)
    other = np.float32(rng.uniform(215, 250) if rng.random() < 0.5 else rng.uniform(10, 50))
    u = along / period + np.float32(phase[0])
    if texture == "striped":
        second = u % 1 < 0.45
    else:
        v = (
            y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
        ) / period + np.float32(phase[1])
        second = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.3**2
    return cv2.merge([np.where(second, other, light * np.float32(channel)) for channel in ink])


def _light(
    rng: np.random.Generator, pixels: Float[np.ndarray, "height width 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Illumination of the whole image: gain and a linear gradient, in 25 % a blur, and noise."""
    height, width = pixels.shape[:2]
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.uniform(-0.12, 0.12))
    down = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(rng.uniform(-0.12, 0.12))
    gain = (rng.uniform(0.75, 1.12) + np.repeat(across, 3)[None, :] + down[:, None]).astype(
        np.float32, copy=False
    )
    pixels = (pixels.reshape(height, width * 3) * gain).reshape(height, width, 3)
    if rng.random() < 0.25:
        pixels = cv2.GaussianBlur(pixels, (3, 3), 0.8)
    return cv2.addWeighted(
        pixels, 1.0, _noise(rng, height, width), rng.uniform(0, 9), 0.0, dtype=cv2.CV_8U
    )


# Labels


def all_labels(kind: str) -> tuple[str, ...]:
    """Every label of one of the KINDS, for example the ten shapes.

    Raises:
        LabelError: another kind.
    """
    if kind == "shape":
        return SHAPES
    if kind == "colour":
        return tuple(f"{c} thing" for c in COLOURS)
    if kind == "texture + shape":
        return tuple(f"{t} {s}" for t in TEXTURES for s in SHAPES)
    if kind == "colour + shape":
        return tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)
    raise LabelError(f"expected a kind of label out of {KINDS}, got {kind!r}: use one of them")


def is_label(label: str) -> bool:
    """Whether it is a label of scenes: at most one colour, one texture, and one shape or "thing",
    in this order."""
    words = label.split()
    choices: Iterator[tuple[str, ...]] = iter((COLOURS, TEXTURES, (*SHAPES, "thing")))
    return bool(words) and all(any(word in choice for choice in choices) for word in words)


def matches(item: SceneObject, label: str) -> bool:
    """Whether the label is true of the object. What is no label of scenes is true of none."""
    return is_label(label) and all(word in (*_names(item), "thing") for word in label.split())


def instance_masks(image: Scene, label: str) -> list[Bool[np.ndarray, "height width"]]:
    """The visible masks of the objects that the label is true of, in drawing order; an absent label
    has none."""
    return [o.mask for o in image.objects if matches(o, label)]


def label_mask(image: Scene, label: str) -> Bool[np.ndarray, "height width"]:
    """The union of the label's instance masks; all false if it is absent."""
    union = np.zeros(image.size, bool)
    for mask in instance_masks(image, label):
        union |= mask
    return union


def true_labels(image: Scene) -> dict[str, tuple[str, ...]]:
    """By kind, the labels that are true of the scene, in the order of `all_labels`."""
    return {kind: tuple(x for x in all_labels(kind) if _present(image, x)) for kind in KINDS}


def _present(image: Scene, label: str) -> bool:
    return any(matches(o, label) for o in image.objects)


def requested_labels(image: Scene, count: int = 20) -> dict[str, tuple[str, ...]]:
    """By kind, labels to request for the scene: at most two true ones of each kind, the others
    absent. They depend on the scene's seed and objects alone.

    `count` is divided evenly among the four kinds. Half of the absent labels, if there are so many,
    are hard: they share a word with an object of the scene.
    """
    rng = np.random.default_rng((image.seed, 1))
    true = true_labels(image)
    words = {word for o in image.objects for word in _names(o)}
    requested = {}
    for place, kind in enumerate(KINDS):
        wanted = count // len(KINDS) + (place < count % len(KINDS))
        present = [str(x) for x in rng.permutation(true[kind])[:2]]
        absent = [
            str(x) for x in rng.permutation([x for x in all_labels(kind) if x not in true[kind]])
        ]
        hard = [x for x in absent if words & set(x.split())][
            : math.ceil((wanted - len(present)) / 2)
        ]
        easy = [x for x in absent if x not in hard]
        requested[kind] = tuple(str(x) for x in rng.permutation((present + hard + easy)[:wanted]))
    return requested


def scene_ground_truth(
    image: Scene, labels: Sequence[str] | None = None
) -> dict[str, list[Bool[np.ndarray, "height width"]]]:
    """Label -> its visible instance masks, for each of `labels` (default: `requested_labels`).

    Absent labels have an empty list, so that an evaluation knows that they were requested.
    """
    if labels is None:
        labels = [x for kind in requested_labels(image).values() for x in kind]
    return {x: instance_masks(image, x) for x in labels}
