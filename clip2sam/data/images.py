"""Images: whatever holds one becomes an `Image`, RGB uint8 (height, width, 3), upright.

Decoding is Pillow's, made strict: a cut file is an error, never an image padded with grey.
"""

import io
import os
import stat
import threading
import warnings
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageFile
from jaxtyping import UInt8

from clip2sam.errors import ImageError


@dataclass(frozen=True)
class Image:
    """A decoded image: RGB, EXIF orientation applied."""

    pixels: UInt8[np.ndarray, "height width 3"]
    origin: str
    """Where it came from, for messages and file names: a path, or a description such as "array"."""

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return self.pixels.nbytes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def __repr__(self) -> str:
        height, width = self.size
        return f"Image({self.origin!r}, {height} x {width})"


ImageSource = Image | str | os.PathLike[str] | bytes | np.ndarray | PIL.Image.Image

MAX_PIXELS = 100_000_000
"""The limit of `load_image` unless another is given: 300 MB of RGB."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings of the names that are taken for images when a folder is searched, in any case."""

# Raster formats only. Pillow would also hand PostScript to an interpreter, among others.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")

_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_OPENINGS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%!PS", "a PostScript document"),
    (b"<svg", "an SVG drawing"),
    (b"8BPS", "a Photoshop document"),
)


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one image: RGB uint8 (height, width, 3), EXIF orientation applied.

    Colours: CMYK, Lab, palettes and 1-bit become RGB. Transparent pixels are laid on white. Of an
    animation or a file with several pages the first frame is taken. 16-bit values are divided down
    to 8 bits. Values that have no fixed white (32-bit integers, floats) are read as 0..1, 0..255
    (floats) or 0..65535, the first of these that holds them all, else stretched from the lowest to
    the highest. An orientation that can't be read counts as upright; ICC profiles are not applied.

    Args:
        source: a path, a file's bytes, a uint8 array (height, width, 3) in RGB or (height, width)
            in grey, or a PIL image (at its current frame). Arrays and PIL images are copied, never
            changed. An `Image` is returned as it is.
        max_pixels: the limit of height times width, compared with the file's header before
            anything is decoded.

    Returns:
        The image. Its `origin` is the path as given, made `printable`, or "bytes", "array" or "PIL
        image".

    Raises:
        ImageError: a file that is missing, empty, unreadable or not regular (a folder, a pipe, a
            device), that holds no image, is cut, damaged or too large; an array of another shape or
            dtype. The message names the origin.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, np.ndarray):
        return Image(_checked_array(source, max_pixels), "array")
    if isinstance(source, PIL.Image.Image):
        return Image(_pixels(source, "PIL image", max_pixels), "PIL image")
    if isinstance(source, bytes):
        return Image(_decode(io.BytesIO(source), "bytes", max_pixels), "bytes")
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            "expected a path, bytes, a numpy array or a PIL image as the image, "
            f"got {type(source).__name__}; convert it to one of these"
        )
    origin = printable(os.fspath(source))
    with _open_regular(source, origin) as file:
        return Image(_decode(file, origin, max_pixels), origin)


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text for terminals and messages: control characters and bytes that can't be decoded
    become %XX, as in a URL, and so does a backslash that doesn't separate folders.
    """
    odd = "\\" if os.sep == "/" else ""
    return "".join(c if c.isprintable() and c != odd else _percent(c) for c in os.fsdecode(path))


def _percent(c: str) -> str:
    undecodable = "\udc80" <= c <= "\udcff"  # how Python carries a byte of a name that is not UTF-8
    return "".join(
        f"%{byte:02X}"
        for byte in c.encode("utf-8", "surrogateescape" if undecodable else "surrogatepass")
    )


def _open_regular(path: str | os.PathLike[str], origin: str) -> io.BufferedReader | io.BytesIO:
    """Open a file for reading. Its kind is checked first: opening a pipe waits for a writer."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a special file")
            raise ImageError(
                f"{origin}: expected an image file, found {kind}; give the path of a file"
            )
        return open(path, "rb")
    except FileNotFoundError as error:
        raise ImageError(f"{origin}: no such file; check the path") from error
    except PermissionError as error:
        raise ImageError(
            f"{origin}: no permission to read this file; check its owner and mode"
        ) from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{origin}: this file can't be read ({error}); check the path") from error


def _decode(file: io.BufferedReader | io.BytesIO, origin: str, max_pixels: int) -> np.ndarray:
    try:
        start = file.read(32)
        file.seek(0)
    except OSError as error:
        raise ImageError(f"{origin}: reading failed ({error}); check the disk") from error
    if not start:
        raise ImageError(f"{origin}: expected an image, found nothing: it is empty (0 bytes)")
    with _strict_pillow(max_pixels):
        try:
            pil = PIL.Image.open(file, formats=_FORMATS)
        except PIL.UnidentifiedImageError as error:
            raise ImageError(
                f"{origin}: expected an image (JPEG, PNG, WebP, TIFF, BMP, GIF, ...), found "
                f"{_describe(start)}; convert it or leave it out"
            ) from error
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(_too_large(origin, max_pixels, str(error))) from error
        except Exception as error:  # Pillow's readers raise whatever a damaged header leads them to
            raise _damaged(origin, error) from error
        with pil:
            if pil.format in ("JPEG", "MPO") and not _has_end_marker(file):
                raise ImageError(
                    f"{origin}: this JPEG is cut: its end marker is missing; get a whole copy of it"
                )
            return _pixels(pil, origin, max_pixels)


def _has_end_marker(file: io.BufferedReader | io.BytesIO) -> bool:
    """Whether the rest of a JPEG has its end marker. Pillow has read past the headers, whose
    thumbnails have end markers of their own.

    Without this check a tail of zeros, which a broken download leaves, is decoded as pixels.
    """
    last = b""
    while block := file.read(1 << 20):
        if b"\xff\xd9" in last + block:
            return True
        last = block[-1:]
    return False


def _pixels(pil: PIL.Image.Image, origin: str, max_pixels: int) -> np.ndarray:
    """Check the size, decode, turn upright, convert to RGB: an array of its own."""
    width, height = pil.size
    if width * height > max_pixels:
        raise ImageError(
            _too_large(origin, max_pixels, f"{height} x {width} pixels (height x width)")
        )
    if width * height == 0:
        raise ImageError(
            f"{origin}: expected at least 1 x 1 pixel, found {height} x {width} (height x width)"
        )
    with _strict_pillow(max_pixels):
        try:
            pil.load()
            upright = _UPRIGHT.get(_orientation(pil))
            rgb = _to_rgb(pil)
            return np.array(rgb if upright is None else rgb.transpose(upright))
        except ImageError as error:
            raise ImageError(f"{origin}: {error}") from error
        except Exception as error:  # as above: OSError, SyntaxError, ValueError, struct.error, ...
            raise _damaged(origin, error) from error


def _orientation(pil: PIL.Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 if the EXIF block is damaged, as the pixels are not."""
    try:
        return int(pil.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _to_rgb(pil: PIL.Image.Image) -> PIL.Image.Image:
    if pil.mode.startswith(("I", "F")):
        return PIL.Image.fromarray(_to_eight_bits(pil)).convert("RGB")
    if pil.has_transparency_data:
        if pil.mode in ("La", "RGBa"):  # premultiplied; Pillow undoes it in one step only
            pil = pil.convert(pil.mode[:-1] + "A")
        pil = pil.convert("RGBA")
        white = PIL.Image.new("RGBA", pil.size, "white")
        pil = PIL.Image.alpha_composite(white, pil)
    return pil.convert("RGB")


def _to_eight_bits(pil: PIL.Image.Image) -> np.ndarray:
    """Grey values deeper than 8 bits, scaled to 0..255: uint8 (height, width)."""
    values = np.asarray(pil).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(
            "holds values that are NaN or infinite; replace them before using the image"
        )
    whites = [65535.0] if pil.mode.startswith("I") else [1.0, 255.0, 65535.0]
    fitting = next((w for w in whites if low >= 0 and high <= w), None)
    black, white = (low, max(high, low + 1)) if fitting is None else (0.0, fitting)
    key = pil.info.get("transparency")  # the value that a 16-bit PNG declares transparent
    scaled: np.ndarray = np.rint((values - black) * (255 / (white - black))).astype(np.uint8)
    scaled[values == key] = 255
    return scaled


def _checked_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    array = np.asarray(array)  # a np.matrix stays two-dimensional whatever is done to it
    colour = array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (colour or array.ndim == 2) or array.size == 0:
        raise ImageError(
            "array: expected uint8 of shape (height, width, 3) in RGB or (height, width) in grey, "
            f"got {array.dtype} of shape {array.shape}; convert it first"
        )
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ImageError(
            _too_large("array", max_pixels, f"{array.shape[0]} x {array.shape[1]} pixels")
        )
    return np.array(array if colour else np.repeat(array[:, :, None], 3, axis=2), order="C")


_switches = threading.Lock()
_decoding = 0
_restore = ExitStack()


@contextmanager
def _strict_pillow(max_pixels: int) -> Iterator[None]:
    """Keep Pillow's process-wide switches strict and quiet while any thread decodes here.

    Cut files fail even if the program has told Pillow to fill them, Pillow's own size limit is not
    below `max_pixels`, and its warnings (size, palettes, EXIF) are silent: those that matter become
    an ImageError. The first thread that enters sets the switches, the last that leaves restores
    them, so threads can't undo each other's.
    """
    global _decoding, _restore
    with _switches:
        if _decoding == 0:
            _restore = ExitStack()
            _restore.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _restore.callback(setattr, PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)
            _restore.callback(
                setattr, PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", PIL.ImageFile.LOAD_TRUNCATED_IMAGES
            )
            PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False
        if PIL.Image.MAX_IMAGE_PIXELS is not None:
            PIL.Image.MAX_IMAGE_PIXELS = max(PIL.Image.MAX_IMAGE_PIXELS, max_pixels)
        _decoding += 1
    try:
        yield
    finally:
        with _switches:
            _decoding -= 1
            if _decoding == 0:
                _restore.close()


def _too_large(origin: str, max_pixels: int, found: str) -> str:
    return (
        f"{origin}: expected at most {max_pixels:,} pixels, the header says {found}; "
        "make the image smaller or raise max_pixels"
    )


def _damaged(origin: str, error: Exception) -> ImageError:
    reason = "".join(filter(str.isprintable, str(error))) or type(error).__name__
    return ImageError(f"{origin}: the image is cut or damaged ({reason}); get a whole copy of it")


def _describe(start: bytes) -> str:
    """What a file that is no image looks like, from its first bytes."""
    named = next((kind for opening, kind in _OPENINGS if start.startswith(opening)), None)
    if named is not None:
        return named
    if start[4:8] == b"ftyp":
        return f"a video or HEIF file (type {start[8:12].decode('ascii', 'replace')!r})"
    try:
        text = getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        text = ""
    if text and all(c.isprintable() or c.isspace() for c in text):
        return f"text that starts with {text!r}"
    return f"bytes that start with {start[:8].hex(' ')}"


def suffix_of(data: bytes) -> str:
    """The suffix of an image's format by its first bytes, such as ".jpg"; empty if it is none."""
    try:
        with (
            _strict_pillow(MAX_PIXELS),
            PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image,
        ):
            suffix = f".{(image.format or '').lower()}"
    except Exception:  # as in `_decode`
        return ""
    return {".jpeg": ".jpg", ".mpo": ".jpg", ".tiff": ".tif"}.get(suffix, suffix)
