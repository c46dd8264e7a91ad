"""The first room: anything that holds a picture becomes an `Image`, RGB uint8 (height, width, 3), upright.

Decoding is Pillow's, made strict: a cut file is an error, never a picture with grey filler.
"""

import io
import os
import stat
import threading
import warnings
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
from jaxtyping import UInt8
from PIL import Image as PILImage

from clip2sam.errors import ImageError


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

    def resized(
        self, height: int, width: int, filter_: PILImage.Resampling
    ) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels at another size, by PIL. What was made ahead is given away."""
        ready = self._ahead.pop((height, width, filter_), None)
        return self._resize(height, width, filter_) if ready is None else ready

    def _resize(
        self, height: int, width: int, filter_: PILImage.Resampling
    ) -> UInt8[np.ndarray, "height width 3"]:
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


ImageSource = Image | str | os.PathLike[str] | bytes | np.ndarray | PIL.Image.Image

MAX_PIXELS = 100_000_000
"""What `load_image` accepts unless told otherwise: 300 MB of RGB."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The file names that `find_images` takes for pictures, in any case."""

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
    """Read one picture: RGB uint8 (height, width, 3), EXIF orientation applied.

    `source` is a path, a file's bytes, a uint8 array (height, width, 3) in RGB or (height, width) in grey,
    or a PIL image (at its current frame). Arrays and PIL images are copied, never changed. An `Image` is handed back.

    Colours: CMYK, Lab, palettes and 1-bit become RGB. Transparent places show white. Of an animation or a
    file with several pages the first frame is taken. 16-bit values are divided down to 8 bits. Values that have
    no fixed white (32-bit integers, floats) are read as 0..1, 0..255 (floats) or 0..65535, the first of
    these that holds them all, else stretched from the lowest to the highest. Orientation that can't be read
    counts as upright; ICC profiles are not applied.

    `max_pixels` (height times width) is compared with the file's header, before anything is decoded.

    `origin` of the result is the path as given, made `printable`, or "bytes", "array" or "PIL image".

    Raises `ImageError`, which names the origin, for a file that is missing, empty, unreadable or not regular
    (a folder, a pipe, a device), not a picture, cut, damaged or too large, and for an array of another shape or dtype.
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
            "expected a path, bytes, a numpy array or a PIL image as the picture, "
            f"got {type(source).__name__}; convert it to one of these"
        )
    origin = printable(os.fspath(source))
    with _open_regular(source, origin) as file:
        return Image(_decode(file, origin, max_pixels), origin)


def find_images(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[Path]:
    """The picture files in folders, sorted by path, each once.

    `sources` is a file or folder, or several. Folders are searched through all levels for names that end in
    one of `SUFFIXES`; links to folders inside them are not followed. A file given by name is taken whatever its ending.

    Raises `ImageError` for a path that doesn't exist, a folder that can't be read, and when there is no picture at all.
    """
    tops = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found: set[Path] = set()
    for top in map(Path, tops):
        if not os.path.lexists(top):
            raise ImageError(f"{printable(top)}: no such file or folder; check the path")
        found.update(_in_folder(top) if top.is_dir() else [top])
    if not found:
        where = ", ".join(printable(top) for top in tops) or "an empty list"
        raise ImageError(
            f"no picture found in {where}: looked for names ending in {', '.join(SUFFIXES)}"
        )
    return sorted(found, key=os.fsencode)


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text for terminals and COCO files: control characters and undecodable bytes become %XX, as in an URL,
    and so does a backslash, except where it stands between folders.
    """
    odd = "\\" if os.sep == "/" else ""
    return "".join(c if c.isprintable() and c != odd else _percent(c) for c in os.fsdecode(path))


def _percent(c: str) -> str:
    undecodable = "\udc80" <= c <= "\udcff"  # how Python carries a byte of a name that is not UTF-8
    return "".join(
        f"%{byte:02X}"
        for byte in c.encode("utf-8", "surrogateescape" if undecodable else "surrogatepass")
    )


def _in_folder(top: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise ImageError(
            f"{printable(error.filename)}: this folder can't be read ({error.strerror}); check its permissions"
        ) from error

    for folder, _, names in os.walk(top, onerror=unreadable):
        yield from (Path(folder, name) for name in names if name.lower().endswith(SUFFIXES))


def _open_regular(path: str | os.PathLike[str], origin: str) -> io.BufferedReader | io.BytesIO:
    """Open a file for reading. Its kind is asked first: opening a pipe would wait for a writer."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = next((words for is_kind, words in _KINDS if is_kind(mode)), "a special file")
            raise ImageError(
                f"{origin}: expected a picture file, found {kind}; give the path of a file"
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
        raise ImageError(f"{origin}: expected a picture, found nothing: it is empty (0 bytes)")
    with _strict_pillow(max_pixels):
        try:
            picture = PIL.Image.open(file, formats=_FORMATS)
        except PIL.UnidentifiedImageError as error:
            raise ImageError(
                f"{origin}: expected a picture (JPEG, PNG, WebP, TIFF, BMP, GIF, ...), found {_describe(start)}; "
                "convert it or leave it out"
            ) from error
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(_too_large(origin, max_pixels, str(error))) from error
        except Exception as error:  # Pillow's readers raise whatever a damaged header leads them to
            raise _damaged(origin, error) from error
        with picture:
            if picture.format in ("JPEG", "MPO") and not _has_end_marker(file):
                raise ImageError(
                    f"{origin}: this JPEG is cut: its end marker is missing; get a whole copy of it"
                )
            return _pixels(picture, origin, max_pixels)


def _has_end_marker(file: io.BufferedReader | io.BytesIO) -> bool:
    """Whether a JPEG goes on to its end marker. Pillow's reader has gone past the headers and their thumbnails.

    The decoder itself takes a tail of zeros, as a broken download leaves it, for pixels.
    """
    last = b""
    while block := file.read(1 << 20):
        if b"\xff\xd9" in last + block:
            return True
        last = block[-1:]
    return False


def _pixels(picture: PIL.Image.Image, origin: str, max_pixels: int) -> np.ndarray:
    """Check the size, decode, turn upright, convert to RGB: an array of its own."""
    width, height = picture.size
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
            picture.load()
            upright = _UPRIGHT.get(_orientation(picture))
            rgb = _to_rgb(picture)
            return np.array(rgb if upright is None else rgb.transpose(upright))
        except ImageError as error:
            raise ImageError(f"{origin}: {error}") from error
        except Exception as error:  # as above: OSError, SyntaxError, ValueError, struct.error, ...
            raise _damaged(origin, error) from error


def _orientation(picture: PIL.Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 where the EXIF block is damaged, which costs no pixel."""
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith(("I", "F")):
        return PIL.Image.fromarray(_to_eight_bits(picture)).convert("RGB")
    if picture.has_transparency_data:
        if picture.mode in ("La", "RGBa"):  # premultiplied; Pillow undoes it in one step only
            picture = picture.convert(picture.mode[:-1] + "A")
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _to_eight_bits(picture: PIL.Image.Image) -> np.ndarray:
    """Grey values deeper than 8 bits, scaled to 0..255: uint8 (height, width)."""
    values = np.asarray(picture).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(
            "holds values that are NaN or infinite; replace them before using the picture"
        )
    whites = [65535.0] if picture.mode.startswith("I") else [1.0, 255.0, 65535.0]
    fitting = next((w for w in whites if low >= 0 and high <= w), None)
    black, white = (low, max(high, low + 1)) if fitting is None else (0.0, fitting)
    key = picture.info.get("transparency")  # the value that a 16-bit PNG declares transparent
    scaled: np.ndarray = np.rint((values - black) * (255 / (white - black))).astype(np.uint8)
    scaled[values == key] = 255
    return scaled


def _checked_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
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
    """Hold Pillow's process-wide switches strict and quiet for as long as any thread decodes here.

    Cut files fail even where a program has asked Pillow to fill them, Pillow's own size limit doesn't come before
    `max_pixels`, and its warnings (size, palettes, EXIF) stay silent: what matters in them becomes an ImageError.
    The first to come sets the switches, the last to go puts them back, so threads can't undo each other's.
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
        "make the picture smaller or raise max_pixels"
    )


def _damaged(origin: str, error: Exception) -> ImageError:
    reason = "".join(filter(str.isprintable, str(error))) or type(error).__name__
    return ImageError(f"{origin}: the picture is cut or damaged ({reason}); get a whole copy of it")


def _describe(start: bytes) -> str:
    """What a file that is no picture looks like, from its first bytes."""
    named = next((words for opening, words in _OPENINGS if start.startswith(opening)), None)
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
