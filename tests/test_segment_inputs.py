"""What `clip2sam segment` takes as images: not its own drawings, and addresses of the web."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image as PILImage

from clip2sam.data.addresses import shown_url
from clip2sam.data.retries import TRIES
from clip2sam.data.sources import find_source, without_drawings
from clip2sam.data.urls import fetch_image, find_images
from clip2sam.errors import ConfigError, ImageError
from clip2sam.tiny.scenes import scene
from tests.file_server import serve


def png(seed: int) -> bytes:
    file = io.BytesIO()
    PILImage.fromarray(scene(seed, 96).pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def segment(monkeypatch, command_line, tmp_path):
    """`clip2sam segment` beside street.png: (exit code, what it printed, errors)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("street.png").write_bytes(png(0))

    def call(*arguments: object, command: str = "segment") -> tuple[int, str, str]:
        return command_line(command, *arguments, "--label", "star", "--label", "circle")

    return call


def names(path: str = "out/annotations.json") -> list[str]:
    return [row["file_name"] for row in json.loads(Path(path).read_text())["images"]]


UNDRAWN = ("--overlays", "none")


@pytest.mark.parametrize("source", [".", "**/*.png"])
def test_its_own_drawings_are_no_input(segment, source):
    code, _, errors = segment(source)
    assert (code, errors, names()) == (0, "", ["street.png"])
    drawn = sorted(p.name for p in Path("out/overlays").iterdir())
    assert drawn == ["street.png.00-all.png", "street.png.01-star.png"]
    code, _, errors = segment(source, *UNDRAWN)
    assert (code, names()) == (0, ["street.png"])
    folder = Path("out/overlays").resolve()
    assert errors == f"left out 2 images in {folder}: clip2sam has drawn them\n"
    assert segment(source, *UNDRAWN, "--output", "other")[0] == 0
    assert names("other/annotations.json") == ["street.png"]
    drawing = "out/overlays/street.png.00-all.png"
    assert segment(drawing, *UNDRAWN, "--output", "third")[0] == 0
    assert names("third/annotations.json") == ["street.png.00-all.png"], "given by itself"


@pytest.mark.parametrize(("command", "output"), [("classify", "scores.json"), ("dense", "maps")])
def test_other_commands_leave_them_out_too(segment, command, output):
    segment(".")
    code, printed, errors = segment(".", "--output", f"../{output}", command=command)
    assert code == 0
    assert "left out 2 images in " in errors
    assert "\n1 images, 2 labels, 0 failed" in printed


def test_other_folders_of_that_name_are_read(tmp_path):
    (tmp_path / "overlays").mkdir()
    drawing = tmp_path / "overlays" / "a.png.01-star.png"
    drawing.write_bytes(png(0))
    for content in (None, '{"images": []}'):
        if content is not None:
            (tmp_path / "annotations.json").write_text(content)
        source = find_source(tmp_path)
        assert without_drawings(source) == (source, {})
    (tmp_path / "annotations.json").write_text('{"info":{"description":"Made with clip2sam 1"}}')
    with pytest.raises(ImageError, match="all that is there was drawn by clip2sam"):
        without_drawings(find_source(tmp_path))
    listed = tmp_path / "list.txt"
    listed.write_text("overlays/a.png.01-star.png\n")
    assert without_drawings(find_source(listed))[1] == {}, "who lists it wants it"
    drawing.rename(tmp_path / "overlays" / "a.png")
    assert without_drawings(find_source(tmp_path))[1] == {}


def test_an_output_where_images_are_is_refused(segment):
    Path("out/deep").mkdir(parents=True)
    Path("out/deep/mine.png").write_bytes(png(1))
    for output in ("out", "out/deep", "."):
        code, _, errors = segment(".", "--output", output)
        assert code == 2
        assert "lies where images are read" in errors


def test_the_histogram_of_a_run_is_no_image(tmp_path):
    for name in ("run/presence.png", "mine/presence.png", "run/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    for name in ("manifest.json", "journal-0001.jsonl"):
        (tmp_path / "run" / name).touch()
    source, drawn = without_drawings(find_source(tmp_path))
    assert (source.keys, source.ids) == (("mine/presence.png", "run/a.png"), (1, 2))
    assert drawn == {str(tmp_path / "run"): 1}


# Addresses


def test_an_image_of_the_web_is_segmented(segment):
    with serve(png(0)) as server:
        url = f"{server.url}/a%20b/street.png?size=big"
        code, printed, errors = segment(url, "street.png", f"{server.url}/missing")
    assert code == 1, "one image failed, the others did not"
    rows = json.loads(Path("out/annotations.json").read_text())["images"]
    assert [(r["id"], r["file_name"], r.get("coco_url")) for r in rows] == [
        (1, "street.png", None),
        (2, "street-2.png", url),
    ]
    assert "3 images, 2 labels, " in printed
    assert errors == (
        f"  failed: missing: {server.url}/missing answered 404 (Not Found); check the address\n"
    )
    assert Path("out/overlays/street-2.png.00-all.png").is_file()


def test_the_network_is_not_used_offline(segment):
    with serve(png(0)) as server:
        code, _, errors = segment(f"{server.url}/a.png", "--offline")
        assert (code, server.requested) == (2, [])
    assert "a.png is an address, but the network is not to be used (offline)" in errors


@pytest.mark.parametrize(
    "url", ["ftp://host/a.png", "file:///etc/a.png", "https:///a.png", "http://[::1/a"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(ImageError, match="expected an address that begins with http://"):
        find_images([url])


def test_names_are_safe_and_differ_in_any_case():
    urls = [
        "http://h/Ä%2F..%2Fb.PNG",
        "http://h/",
        "http://h",
        "http://h/%2e%2e",
        "https://h/x/a.b",
    ]
    keys = find_images([*urls, "http://h/A.B", f"http://h/{'n' * 300}.jpeg", urls[1]]).keys
    assert keys == (
        "Ä_.._b.PNG",
        "image",
        "image-2",
        "image-3",
        "a.b",
        "A-2.B",
        f"{'n' * 100}.jpeg",
    )


def test_a_password_is_not_shown():
    assert shown_url("https://me:secret@host:8/a.png?b=c") == "https://host:8/a.png?b=c"


def test_what_is_no_image_says_what_it_is(monkeypatch):
    monkeypatch.setattr("clip2sam.data.retries.FIRST_WAIT", 0.0)
    page = b"\n<!DOCTYPE html><html>no image</html>"
    with serve(page) as server:
        url = f"{server.url}/a.png"
        with pytest.raises(ImageError, match=r"^a\.png: http.*/a\.png is a web page, expected an"):
            fetch_image(url, "a.png")
        server.content, server.headers = png(0), {"Content-Type": "text/html; charset=utf-8"}
        with pytest.raises(ImageError, match="is a web page, expected an image"):
            fetch_image(url, "a.png")
        server.content, server.headers = b"", {}
        with pytest.raises(ImageError, match="gave nothing"):
            fetch_image(url, "a.png")
        server.content = bytes(300_000)
        with monkeypatch.context() as patch:
            patch.setattr("clip2sam.data.remote.MAX_BYTES", 200_000)
            with pytest.raises(ImageError, match="gives more than 200000 bytes"):
                fetch_image(url, "a.png")
        server.faults = ["trickle"]
        with monkeypatch.context() as patch:
            patch.setattr("clip2sam.data.remote.MOST_SECONDS", 0.0)
            with pytest.raises(ImageError, match=r"takes more than 0 s; fetch it by hand"):
                fetch_image(url, "a.png")
        server.faults = ["stall:9"] * TRIES
        with monkeypatch.context() as patch:
            patch.setattr("clip2sam.data.remote.TIMEOUT", (1.0, 0.1))
            with pytest.raises(ImageError, match=r"can't be fetched \(.*timed out"):
                fetch_image(url, "a.png")
        server.go_on.set()
        server.faults = ["cut:9"] * TRIES
        with pytest.raises(ImageError, match="can't be fetched"):
            fetch_image(url, "a.png")
        server.moved_to = "file:///etc/hostname"
        with pytest.raises(ImageError, match="can't be fetched"):
            fetch_image(f"{server.url}/moved", "moved")
        server.moved_to = "/found"
        assert fetch_image(f"{server.url}/moved", "moved") == bytes(300_000)
    with pytest.raises(ImageError, match="check the address and the network"):
        fetch_image(url, "a.png")


def test_an_address_and_offline_in_python():
    with pytest.raises(ConfigError, match="is an address, but the network"):
        find_images("https://host/a.png", offline=True)
