"""Everything that `load_image` is given in the wild, made here: no image file is stored."""

import inspect
import io
import os
import socket
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.PngImagePlugin
import pytest

from clip2sam.data.images import load_image, printable
from clip2sam.errors import ImageError

ORIENTATION = 0x0112


def encoded(pil: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    pil.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def colours() -> np.ndarray:
    """Blocks of random colours, (48, 64, 3)."""
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_come_out_as_they_went_in(tmp_path, colours, kind):
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(encoded(PIL.Image.fromarray(colours), kind))
    image = load_image(path)
    assert image.pixels.dtype == np.uint8
    assert np.array_equal(image.pixels, colours)
    assert image.origin == str(path)
    assert image.size == (48, 64)
    assert image.pixels.flags.writeable, "torch.from_numpy warns otherwise"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_come_out_nearly_as_they_went_in(colours, kind):
    image = load_image(encoded(PIL.Image.fromarray(colours), kind, quality=95))
    assert image.origin == "bytes"
    assert (
        np.abs(image.pixels.astype(int) - colours).mean() < 12
    )  # colours bleed; another image differs by 80


def test_arrays_and_pil_images_are_copied(colours):
    from_array, pil = load_image(colours), PIL.Image.fromarray(colours)
    from_pil = load_image(pil)
    before = colours.copy()
    colours[:] = 0
    pil.paste("black", (0, 0, 64, 48))
    assert load_image(from_array) is from_array
    assert (from_array.origin, from_pil.origin) == ("array", "PIL image")
    assert np.array_equal(from_array.pixels, before)
    assert np.array_equal(from_pil.pixels, before)


def test_a_grey_array_becomes_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    pixels = load_image(grey).pixels
    assert pixels.shape == (3, 4, 3)
    assert all(np.array_equal(pixels[..., c], grey) for c in range(3))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4), bool),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused_by_shape_and_dtype(array):
    with pytest.raises(ImageError, match="expected uint8 of shape") as caught:
        load_image(array)
    assert f"{array.dtype} of shape {array.shape}" in str(caught.value)


def test_other_types_are_refused():
    unchecked = inspect.unwrap(load_image)  # without the tests' own type checks
    with pytest.raises(ImageError, match="got NoneType; convert it to one of these"):
        unchecked(None)


# What EXIF orientation n does to the stored pixels, from the standard's table
# "row 0 is ..., column 0 is ...".
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(colours, kind, orientation):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    stored = encoded(PIL.Image.fromarray(colours), kind, exif=exif, **options)
    expected = UPRIGHT[orientation](colours)
    pixels = load_image(stored).pixels
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < (12 if kind == "JPEG" else 1e-9)


def test_exif_orientation_of_a_pil_image_is_applied_and_the_image_left_alone(colours):
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6
    pil = PIL.Image.open(io.BytesIO(encoded(PIL.Image.fromarray(colours), exif=exif)))
    assert load_image(pil).size == (64, 48)
    assert pil.size == (64, 48)  # PIL's order is (width, height): still lying
    assert pil.getexif()[ORIENTATION] == 6


@pytest.mark.parametrize("block", [b"garbage", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x20\0"])
def test_a_damaged_exif_block_costs_nothing(colours, block):
    pixels = load_image(
        encoded(PIL.Image.fromarray(colours), "JPEG", quality=95, exif=b"Exif\0\0" + block)
    ).pixels
    assert pixels.shape == colours.shape


def test_cmyk_shows_its_colours():
    ink = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    for kind in ("JPEG", "TIFF"):
        red, green, blue = load_image(encoded(ink, kind)).pixels[4, 4].astype(int)
        assert red > 245
        assert green < 10
        assert blue < 10


def test_lab_shows_its_colours():
    lab = PIL.Image.new("RGB", (4, 4), (200, 30, 40)).convert("LAB")
    pixel = load_image(encoded(lab, "TIFF")).pixels[0, 0]
    assert np.abs(pixel.astype(int) - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = load_image(encoded(PIL.Image.fromarray(deep), kind)).pixels
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_big_endian_sixteen_bit_file_is_scaled():
    pgm = b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 514)
    assert load_image(pgm).pixels[0, :, 1].tolist() == [255, 2]
    pil = PIL.Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 65535, 514))
    assert load_image(pil).pixels[0, :, 1].tolist() == [255, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535, 257]], np.int32), [0, 255, 1]),
        (np.array([[-100, 100]], np.int32), [0, 255]),
        (np.array([[0, 1 << 20]], np.int32), [0, 255]),
        (np.array([[7, 70000]], np.int32), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 7.0, 255.0]], np.float32), [0, 7, 255]),
        (np.array([[-1.0, 1.0]], np.float32), [0, 255]),
        (np.array([[1e6, 1e6]], np.float32), [0, 0]),
    ],
)
def test_values_without_a_fixed_white_are_scaled(values, expected):
    tiff = encoded(PIL.Image.fromarray(values), "TIFF")
    assert load_image(tiff).pixels[0, :, 2].tolist() == expected


def test_nan_in_an_image_is_refused():
    tiff = encoded(PIL.Image.fromarray(np.array([[0.0, np.nan]], np.float32)), "TIFF")
    with pytest.raises(ImageError, match="bytes: holds values that are NaN or infinite"):
        load_image(tiff)


def test_alpha_is_laid_on_white():
    half = PIL.Image.new("RGBA", (2, 1), (0, 0, 0, 128))
    half.putpixel((1, 0), (9, 9, 9, 0))
    assert load_image(encoded(half)).pixels[0].tolist() == [[127] * 3, [255] * 3]
    assert (
        load_image(encoded(PIL.Image.new("LA", (1, 1), (10, 0)))).pixels[0, 0].tolist() == [255] * 3
    )
    assert (
        load_image(encoded(PIL.Image.new("LA", (1, 1), (10, 255)))).pixels[0, 0].tolist()
        == [10] * 3
    )
    for mode, colour in (("RGBa", (0, 0, 0, 0)), ("La", (0, 0))):
        assert load_image(PIL.Image.new(mode, (1, 1), colour)).pixels[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("transparency", [0, b"\x00\xff", None])
def test_palettes_with_and_without_transparency(transparency):
    pil = PIL.Image.new("P", (2, 1))
    pil.putpalette([255, 0, 0, 0, 0, 255])
    pil.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    first = [255, 0, 0] if transparency is None else [255, 255, 255]
    assert load_image(encoded(pil, **options)).pixels[0].tolist() == [first, [0, 0, 255]]


@pytest.mark.parametrize(
    ("pil", "key"),
    [
        (PIL.Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (PIL.Image.new("L", (1, 1), 7), 7),
        (PIL.Image.fromarray(np.full((1, 1), 300, np.uint16)), 300),
    ],
)
def test_a_colour_declared_transparent_shows_white(pil, key):
    assert load_image(encoded(pil, transparency=key)).pixels[0, 0].tolist() == [255] * 3
    assert load_image(encoded(pil)).pixels[0, 0].tolist() != [255] * 3


def test_one_bit_is_black_and_white():
    bits = PIL.Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "TIFF", "BMP"):
        assert load_image(encoded(bits, kind)).pixels[0, :, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [PIL.Image.new("RGB", (8, 8), c) for c in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert PIL.Image.open(io.BytesIO(data)).n_frames == 3
    assert load_image(data).pixels[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (9000, 1)])
def test_extreme_shapes_load(shape):
    data = encoded(PIL.Image.fromarray(np.full((*shape, 3), 9, np.uint8)))
    assert load_image(data).size == shape


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("lenient", [False, True])
def test_a_cut_file_is_an_error_or_whole_never_filled_up(
    monkeypatch, colours, kind, options, lenient
):
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encoded(PIL.Image.fromarray(colours), kind, **options)
    whole = load_image(data).pixels
    refused = 0
    for length in range(1, len(data), 7):
        try:
            pixels = load_image(data[:length]).pixels
        except ImageError:
            refused += 1
        else:
            assert np.array_equal(pixels, whole), f"filled up after {length} bytes"
    assert refused > 0.9 * len(range(1, len(data), 7))
    assert PIL.ImageFile.LOAD_TRUNCATED_IMAGES is lenient, "put back as it was"


def test_a_jpeg_whose_tail_is_zeros_is_cut():
    noise = PIL.Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    thumbnail = b"Exif\0\0" + encoded(
        PIL.Image.new("RGB", (8, 8)), "JPEG"
    )  # with an end marker of its own
    data = encoded(noise, "JPEG", exif=thumbnail)
    assert load_image(data).size == (64, 64)
    with pytest.raises(ImageError, match="this JPEG is cut: its end marker is missing"):
        load_image(data[: len(data) // 2] + bytes(len(data) * 3))


def png_with_size(width: int, height: int) -> bytes:
    """A PNG whose header promises any size; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [header, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


@pytest.mark.parametrize(
    ("width", "height"), [(65_000, 65_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)]
)
def test_the_size_limit_is_read_from_the_header(width, height):
    with pytest.raises(
        ImageError, match="bytes: expected at most 100,000,000 pixels, the header says"
    ):
        load_image(png_with_size(width, height))


def test_max_pixels_is_the_only_limit(monkeypatch, colours):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(encoded(PIL.Image.fromarray(colours))).size == (48, 64)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10
    assert load_image(colours, max_pixels=48 * 64).size == (48, 64)
    for source in (colours, PIL.Image.fromarray(colours), encoded(PIL.Image.fromarray(colours))):
        with pytest.raises(ImageError, match=r"at most 3,071 pixels.*48 x 64"):
            load_image(source, max_pixels=48 * 64 - 1)


def test_threads_leave_pillow_as_they_found_it(colours):
    data = encoded(PIL.Image.fromarray(colours), "JPEG")
    filters = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                load_image(data)
                with pytest.raises(ImageError):
                    load_image(data[:-20])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert warnings.filters == filters


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"hello, this is no image", "text that starts with 'hello, this is no image'"),
        ("Grüße ".encode() * 20, "text that starts with 'Grüße"),
        (b"<svg xmlns='x'/>", "an SVG drawing"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"PK\x03\x04abcd", "a ZIP archive"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a video or HEIF file"),
        (b"\x00\x01\x02\x03\xff", "bytes that start with 00 01 02 03 ff"),
        (b"\xff\xd8\xff", "bytes that start with ff d8 ff"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, found):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert found in str(caught.value)


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
    found = {
        "pipe.jpg": "found a pipe",
        "socket.jpg": "found a socket",
        "empty.jpg": "it is empty",
        "broken.jpg": "no such file",
        "missing.jpg": "no such file",
        "loop.jpg": "can't be read",
        "empty.jpg/x.jpg": "can't be read",
        ".": "found a folder",
        "/dev/null": "found a device",
        "a\0b.jpg": "can't be read",
        "x" * 300: "can't be read",
    }
    for name, words in found.items():
        with pytest.raises(ImageError, match=words):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="it is empty"):
        load_image(b"")


def test_a_file_without_permission(tmp_path, monkeypatch, colours):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(PIL.Image.fromarray(colours)))

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # a mode of 000 would not stop root
    with pytest.raises(ImageError, match=r"secret\.png: no permission to read"):
        load_image(path)


def test_names_that_are_not_utf8_load_and_print(tmp_path, colours):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n\x1b[31m.png")
    Path(path).write_bytes(encoded(PIL.Image.fromarray(colours)))
    image = load_image(path)
    assert np.array_equal(image.pixels, colours)
    assert image.origin.endswith("/caf%E9%0A%1B[31m.png")
    image.origin.encode("utf-8")
    assert printable("\ud800\u200b") == "%ED%A0%80%E2%80%8B"
    assert printable("a\\b") == "a%5Cb"
    assert printable("Straße 7/犬.png") == "Straße 7/犬.png"
