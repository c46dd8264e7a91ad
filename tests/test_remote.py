"""Images at addresses: what is read of them, what a run keeps of them, and what never shows."""

import json
import re
import shutil
import socket
import ssl
from pathlib import Path

import fsspec
import pytest
import requests
from huggingface_hub import constants
from typer.testing import CliRunner

from clip2sam.cli.app import app
from clip2sam.data import network, remote, retries
from clip2sam.data.addresses import check_address, shown_url, without_access, without_secrets
from clip2sam.data.opening import check_found, open_source, source_of
from clip2sam.data.remote_source import RemoteSource, key_of
from clip2sam.data.retries import TRIES, may_pass
from clip2sam.errors import ConfigError, ImageError, RunError, WeightsError
from clip2sam.labelling.content import open_content
from clip2sam.labelling.export import export_run
from clip2sam.labelling.manifest import open_run
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from tests.file_server import serve
from tests.labelling_fakes import Threshold, write_images

CLASSES = Threshold.classes
SIGNED = "X-Amz-Date=1&X-Amz-Signature=s3cret"


@pytest.fixture(autouse=True)
def _calm(monkeypatch):
    """No waiting between tries, short timeouts, no proxy before the local server."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(remote, "TIMEOUT", (5.0, 0.3))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", *network.BUNDLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serve(b"0123456789" * 100) as running:
        yield running


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "in", 4)


@pytest.fixture
def store(images):
    """The images below memory://pictures, with a file that is none."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe("/pictures/notes.txt", b"no image")
    for number, path in enumerate(sorted(images.iterdir())):
        files.pipe(f"/pictures/{'sub/' * (number % 2)}{path.name}", path.read_bytes())
    yield files
    files.store.clear()


def label(source, run, **settings):
    return label_dataset(source, CLASSES, run, engine=Threshold(), **settings)


def write_list(path: Path, *entries: str) -> Path:
    path.write_text("".join(f"{entry}\n" for entry in entries))
    return path


def published(run: Path) -> str:
    return (run / "annotations.json").read_text()


def failures(run: Path) -> dict[str, str]:
    lines = (run / "journal-0001.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("state") == "failed"]
    return {row["file_name"]: row["reason"] for row in rows}


# Bytes at addresses


def test_whole_and_in_parts_from_a_store(store, monkeypatch):
    store.pipe("/x/a.bin", bytes(range(200)))
    url = "memory://x/a.bin"
    assert remote.read_whole(url) == bytes(range(200))
    assert remote.read_range(url, 3, 7) == bytes(range(3, 7))
    with pytest.raises(ImageError, match="gave 2 bytes in place of bytes 198 to 203; get a whole"):
        remote.read_range(url, 198, 203)
    with pytest.raises(ImageError, match=r"^memory://x/none: there is nothing at this address"):
        remote.read_whole("memory://x/none")
    store.pipe("/x/empty.png", b"")
    with pytest.raises(ImageError, match=r"^memory://x/empty.png gave nothing; check the address"):
        remote.read_whole("memory://x/empty.png")
    monkeypatch.setattr(remote, "MAX_BYTES", 199)
    with pytest.raises(ImageError, match="gives more than 199 bytes; fetch it by hand"):
        remote.read_whole(url)
    with pytest.raises(ImageError, match="expected at most 199 bytes at once, but bytes 0 to 200"):
        remote.read_range(url, 0, 200)


def test_a_file_of_the_web_to_read_in_any_order(server, monkeypatch):
    monkeypatch.setattr(remote, "AHEAD", 16)
    with remote.open_seekable(f"{server.url}/a.tar") as file:
        assert (file.name, file.mode) == (f"{server.url}/a.tar", "rb")
        assert (file.seek(-3, 2), file.read()) == (997, b"789")
        assert (file.seek(5), file.read(2), file.read(40)) == (5, b"56", b"7890123456" * 4)
        with pytest.raises(ValueError, match="expected a place from 0 on, got -1"):
            file.raw.seek(-1)
        assert (file.raw.seek(998), file.raw.readinto(bytearray(8)), file.raw.tell()) == (
            998,
            2,
            1000,
        )
    assert server.requested[:3] == ["bytes=0-0", "bytes=997-999", "bytes=5-20"]
    server.ranges = False
    with pytest.raises(ImageError, match="gives no parts of files; download the file first"):
        remote.open_seekable(f"{server.url}/a.tar")
    with pytest.raises(ImageError, match="gives no parts of files; download the file first"):
        remote.read_range(f"{server.url}/a.tar", 2, 4)


def test_patterns_are_expanded(store):
    assert remote.expand("memory://pictures/**/00[13].png") == [
        "memory://pictures/sub/001.png",
        "memory://pictures/sub/003.png",
    ]
    assert remote.expand("https://host/a.tar?b=c") == ["https://host/a.tar?b=c"], "not asked for"


def test_a_folder_of_the_web(server, store):
    page = '<a href="/in/b.png">b</a> <a href="/in/a%20b.jpg">a</a> <a href="/other/c.png">c</a>'
    server.content, server.headers = page.encode(), {"Content-Type": "text/html"}
    source = open_source(f"{server.url}/in/")
    assert source.keys == ("a%20b.jpg", "b.png")
    assert source.address("b.png") == f"{server.url}/in/b.png"


def test_what_calls_itself_a_page_is_no_image(server):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(ImageError, match=r"a\.png is a web page, expected an image; give the"):
        remote.read_whole(f"{server.url}/a.png")


def test_listings_are_made_anew(store, monkeypatch):
    told = []
    monkeypatch.setattr(type(store), "invalidate_cache", lambda *_: told.append(1))
    open_source("memory://pictures")
    assert told


@pytest.mark.parametrize("faults", [["429", "503"], ["cut:9"], ["stall:9", "408", "500"]])
def test_what_may_pass_is_tried_again(server, faults):
    server.faults = list(faults)
    assert remote.read_whole(f"{server.url}/a.png") == server.content
    assert len(server.requested) == len(faults) + 1


def test_what_will_not_pass_is_not(server):
    for status, reason in (("404", r"\(Not Found\)"), ("403", r".* credentials are in the env")):
        server.faults = [status] * 2
        with pytest.raises(ImageError, match=f"/a.png answered {status} .*{reason}|{reason}"):
            remote.read_whole(f"{server.url}/a.png")
        assert len(server.faults) == 1
    server.faults = ["500"] * 9
    with pytest.raises(ImageError, match=r"answered 500 \(Internal Server Error\)"):
        remote.read_whole(f"{server.url}/a.png")
    assert len(server.faults) == 9 - TRIES


def test_no_further_try_begins_after_the_whole_time(server, monkeypatch):
    monkeypatch.setattr(remote, "MOST_SECONDS", 0.0)
    server.faults = ["503"] * 2
    with pytest.raises(ImageError, match="answered 503"):
        remote.read_whole(f"{server.url}/a.png")
    assert len(server.requested) == 1


def test_an_answer_that_drips_is_too_late(server, monkeypatch):
    monkeypatch.setattr(remote, "MOST_SECONDS", 0.2)
    server.faults = ["trickle"]
    with pytest.raises(ImageError, match=r"a\.png takes more than 0\.2 s; fetch it by hand"):
        remote.read_whole(f"{server.url}/a.png")


def test_a_server_says_how_long_to_wait(server, monkeypatch):
    waited = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    server.faults, server.headers = ["429", "429"], {"Retry-After": "7"}
    monkeypatch.setattr(retries, "LONGEST_WAIT", 5.0)
    assert remote.read_whole(f"{server.url}/a.png") == server.content
    assert waited == [5.0, 5.0]


def test_waits_double_and_are_never_the_same(monkeypatch):
    waited = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    monkeypatch.setattr(retries, "FIRST_WAIT", 1.0)

    def fail():
        raise ConnectionResetError

    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            retries.retried(fail, float("inf"))
    assert len({*waited}) == 6
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waited[:3]))


def as_raised(error: Exception, cause: BaseException | None = None) -> Exception:
    error.__cause__ = cause
    return error


class Botocore(Exception):
    def __init__(self, status):
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (TimeoutError(), True),
        (requests.ReadTimeout(), True),
        (as_raised(OSError(5, "slow down"), Botocore(503)), True),
        (as_raised(OSError(5, "wrong"), Botocore(400)), False),
        (requests.ConnectionError(as_raised(OSError(), socket.gaierror(-3, "for now"))), True),
        (
            requests.ConnectionError(as_raised(OSError(), socket.gaierror(socket.EAI_NONAME, "?"))),
            False,
        ),
        (requests.exceptions.SSLError(), False),
        (requests.ConnectionError(ssl.SSLCertVerificationError()), False),
        (FileNotFoundError("timeout"), False),
        (ValueError(), False),
    ],
)
def test_errors_that_may_pass(error, passes):
    assert may_pass(error) == passes


# Addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@h/a.png?b=c#d", "https://h/a.png?b=c#d"),
        ("s3://key:pw@bucket/a", "s3://bucket/a"),
        (f"https://h/a?x=1&{SIGNED}", "https://h/a?x=1&X-Amz-Date=1&X-Amz-Signature=***"),
        (
            "https://h/a?sv=1&sig=pw&author=me&design=3",
            "https://h/a?sv=1&sig=***&author=me&design=3",
        ),
        ("https://h/a?access_token=pw&api_key=pw&password=pw", None),
    ],
)
def test_what_gives_access_is_not_shown(url, shown):
    assert "pw" not in shown_url(url)
    assert shown is None or shown_url(url) == shown
    assert "pw" not in without_secrets(f"failed (at {url}) and '{url}'")


def test_an_address_that_is_signed_anew_is_the_same():
    url = "https://h/a.png?v=1"
    for signed in (f"{url}&{SIGNED}", f"{url}&sv=1&se=2&sig=3", f"{url}&Expires=1&Signature=2"):
        assert without_access(signed) == url
    assert without_access("https://me:pw@h/a.png") == "https://h/a.png"
    other = "https://h/a?st=1&expires=2&author=3"
    assert without_access(other) == other, "it is not signed: these may be of the image"


@pytest.mark.parametrize(
    "url",
    ["ftp://h/a", "https:///a.png", "http://[::1/a", "s3://b/a::memory://x", "a.png", "s3://"],
)
def test_what_is_no_address(url):
    with pytest.raises(ImageError, match=r"expected an address that begins with http://, .* or m"):
        check_address(url)


PLAIN = {
    "https://h.com/a/ä b.jpg": "h.com/a/ä b.jpg",
    "http://h.com/a.jpg": "http/h.com/a.jpg",
    "s3://bucket/x/y.png": "s3/bucket/x/y.png",
    "hf://datasets/o/n@main/y.png": "hf/datasets/o/n@main/y.png",
    "memory://x/a.png": "memory/x/a.png",
    "file:///x/a.png": "file/x/a.png",
}
LOOKED_UP = {
    "https://h/a.jpg?x=1": "h/a~",
    "https://h/a.jpg?x=2": "h/a~",
    "https://me:pw@h/a.jpg": "h/a~",
    "https://h:80/a.jpg": "h_80/a~",
    "https://h/../b//c.jpg": "h/b/c~",
    "https://s3/x.jpg": "s3/x~",
    "HTTPS://h/a.jpg": "HTTPS/h/a~",
    "https://h/a~0123456789abcdef.jpg": "h/a~0123456789abcdef~",
    "ftp://h/a.jpg": "ftp/h/a~",
    "/home/a.jpg": "home/a~",
    f"https://h/{'n' * 300}.jpg?x": f"h/{'n' * 100}~",
}


def test_keys_lead_back_to_their_addresses(tmp_path):
    path = write_list(tmp_path / "list.txt", *PLAIN, *LOOKED_UP)
    keys = {url: key_of(url) for url in (*PLAIN, *LOOKED_UP)}
    assert {url: keys[url] for url in PLAIN} == PLAIN
    for url, start in LOOKED_UP.items():
        assert re.fullmatch(re.escape(start) + r"[0-9a-f]{16}\.jpg", keys[url]), keys[url]
    source = open_source(path)
    assert source == open_source(path, source.root)
    assert source.keys == tuple(sorted(keys.values(), key=str.encode))
    again = source_of("remote", source.origin, source.root, source.keys[::2], source.ids[::2])
    for part in (source, again):
        assert {part.address(key) for key in part.keys} == {
            url for url, key in keys.items() if key in part.keys
        }
    path.unlink()
    elsewhere = RemoteSource(source.origin, source.root, source.keys, source.ids)
    assert [elsewhere.address(PLAIN[url]) for url in PLAIN] == list(PLAIN), "without the list"
    with pytest.raises(ImageError, match="this list can't be read"):
        elsewhere.address(keys["https://h/a.jpg?x=1"])
    write_list(path, *PLAIN)
    with pytest.raises(ImageError, match=r"has its address no longer; put it back"):
        elsewhere.address(keys["https://h/a.jpg?x=1"])


def test_of_two_addresses_of_one_image_the_first_counts(tmp_path):
    urls = [f"https://h/a.jpg?X-Amz-Signature={signature}" for signature in ("first", "second")]
    source = open_source(write_list(tmp_path / "list.txt", *urls))
    (key,) = source.keys
    assert source.address(key) == urls[0]


# Sources


def test_a_folder_and_a_glob_of_a_store(store):
    folder = open_source("memory://pictures/")
    assert folder.keys == ("000.png", "002.png", "sub/001.png", "sub/003.png")
    assert (folder.origin, folder.root, folder.ids) == (*["memory://pictures"] * 2, (1, 2, 3, 4))
    assert folder.read("sub/001.png") == store.cat("/pictures/sub/001.png")
    glob = open_source("memory://pictures/*/*.png")
    assert (glob.keys, glob.root) == (("sub/001.png", "sub/003.png"), "memory://pictures")
    flat = open_source("memory://pictures/*")
    assert flat.keys == ("000.png", "002.png", "notes.txt"), "a folder is no image"
    one = open_source("memory://pictures/notes.txt")
    assert (one.keys, one.read("notes.txt")) == (("notes.txt",), b"no image")
    below = open_source("memory://pictures/sub", "memory://pictures")
    assert below.keys == ("sub/001.png", "sub/003.png")
    with pytest.raises(ImageError, match="lies outside of the root memory://elsewhere/"):
        open_source("memory://pictures", "memory://elsewhere")
    with pytest.raises(ImageError, match="there is nothing at this address"):
        open_source("memory://none")
    with pytest.raises(ImageError, match="no image found in memory://pictures/x\\*: looked for"):
        open_source("memory://pictures/x*")


def test_what_a_source_may_not_be(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match=r"^https://h/in: a name, a pass.* \(AWS_\.\.\., HF_T"):
        open_source("https://me:pw@h/in")
    with pytest.raises(ImageError, match=r"^memory:/: expected an address"):
        open_source("memory://*/a.png")
    listed = write_list(tmp_path / "list.txt", "https://h/a.png")
    with pytest.raises(ImageError, match="has addresses, which are below no root; leave out --"):
        open_source(listed, tmp_path)
    mixed = write_list(tmp_path / "mixed.txt", "a.png", "https://h/a.png")
    with pytest.raises(ImageError, match="line 2: expected a path as in the first line, got an a"):
        open_source(mixed)

    def without(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(ImageError, match=r's3fs to read s3:// .* install "clip2sam\[s3\]"'):
        open_source("s3://bucket/in")


def test_columns_of_addresses(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('text,URL\n"a, b",https://h/b.png\nc,https://h/a.png\nno address,\n')
    assert open_source(path).keys == ("h/a.png", "h/b.png", key_of(""))


def test_a_source_is_checked_by_one_request_or_none(server, store, tmp_path, monkeypatch):
    check_found(f"{server.url}/a.png")
    assert len(server.requested) == 1
    with pytest.raises(ImageError, match="answered 404"):
        check_found(f"{server.url}/missing.png".replace(".png", ""))
    check_found("memory://pictures/**/*.png", offline=True)
    with pytest.raises(ImageError, match="memory://none: there is nothing at this address"):
        check_found("memory://none/*.png")
    listed = write_list(tmp_path / "list.txt", "memory://x/a.png", f"{server.url}/b.png")
    asked = len(server.requested)
    check_found(listed)
    assert len(server.requested) == asked
    with pytest.raises(ConfigError, match=f"^{server.url}/b.png is an address, but the network"):
        check_found(listed, offline=True)
    given = ["label", "s3://bucket/in", "--label", "star", "--offline", "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(app, given)
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("s3://bucket/in is an address, but the network is not")


# Runs


@pytest.mark.parametrize("how", ["folder", "list"])
def test_the_files_are_those_of_local_images_but_for_names(store, images, tmp_path, how):
    for number in (1, 3):
        (images / "sub").mkdir(exist_ok=True)
        shutil.move(images / f"{number:03d}.png", images / "sub")
    label(images, tmp_path / "local")
    local = published(tmp_path / "local")
    source, prefix = "memory://pictures", ""
    if how == "list":
        names = ("sub/003.png", "000.png", "sub/001.png", "002.png", "000.png")
        entries = [f"memory://pictures/{name}" for name in names]
        source, prefix = write_list(tmp_path / "list.txt", *entries), "memory/pictures/"
    label(source, tmp_path / "run")
    assert published(tmp_path / "run").replace('"memory/pictures/', '"') == local
    assert f'"{prefix}sub/001.png"' in published(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"is for image files; leave it out .* Parquet files, or at addresses"
    ):
        label(source, tmp_path / "run", hash_images=True)
    export_run(tmp_path / "run", tmp_path / "yolo", "yolo", val_share=0.0)
    written = {path.read_bytes() for path in (tmp_path / "yolo" / "images").rglob("*.png")}
    assert {(images / "sub" / "001.png").read_bytes()} < written
    assert written <= {path.read_bytes() for path in images.rglob("*.png")}


def test_images_of_a_signed_list_are_copied_from_a_run_in_shards(server, images, tmp_path):
    for path in images.iterdir():
        server.files[f"{path.name}?{SIGNED}"] = path.read_bytes()
    urls = [f"{server.url}/{path.name}?{SIGNED}" for path in images.iterdir()]
    listed, run = write_list(tmp_path / "list.txt", *urls), tmp_path / "run"
    for number in (1, 2):
        label(listed, run, shard=f"{number}/2")
    export_run(run, tmp_path / "yolo", "yolo", val_share=0.0)
    written = sorted(path.read_bytes() for path in (tmp_path / "yolo/images").rglob("*.png"))
    assert written == sorted(path.read_bytes() for path in images.iterdir())
    with pytest.raises(RunError, match="none: expected the name of an image of this run"):
        open_content(run).reader()("none")


def test_a_run_over_a_list_goes_on_and_shows_no_signature(server, images, tmp_path):
    """Only what is missing is asked for again; signed anew, these are the same images."""
    for path in images.iterdir():
        server.files[f"{path.name}?{SIGNED}"] = path.read_bytes()
        server.files[f"{path.name}?{SIGNED}9"] = path.read_bytes()
    names, run = [path.name for path in images.iterdir()], tmp_path / "run"
    user = server.url.replace("://", "://me:s3cret@")
    listed = write_list(tmp_path / "list.txt", *(f"{user}/{name}?{SIGNED}" for name in names))
    records = label_dataset_iter(
        listed, CLASSES, run, engine=Threshold(group=1), batch_size=1, readers=1
    )
    next(records)
    records.close()
    done, asked = len((run / "journal-0001.jsonl").read_text().splitlines()), len(server.requested)
    assert 1 <= done < asked <= 4
    more = (f"{user}/{name}?{SIGNED}9" for name in reversed(names))
    write_list(listed, f"{server.url}/gone?token=s3cret&x=missing", *more)
    with pytest.warns(UserWarning, match="1 images were added since the run began: .*gone~"):
        assert label(listed, run).failed == 1
    assert len(server.requested) == asked + 4 - done + 1
    (reason,) = failures(run).values()
    assert "/gone?token=***&x=missing answered 404 (Not Found); check the address" in reason
    assert [row["id"] for row in json.loads(published(run))["images"]] == [1, 2, 3, 4]
    assert label(listed, run).labelled_now == 0
    for path in run.iterdir():
        assert b"s3cret" not in path.read_bytes(), path.name


def test_a_bad_entry_costs_that_image(store, tmp_path):
    good = "memory://pictures/000.png"
    path = write_list(tmp_path / "list.txt", good, "https:///a.png", "gopher://h/b.png", "c.png")
    run = tmp_path / "run"
    assert (label(path, run).failed, label(path, run).labelled_now) == (3, 0)
    assert len(failures(run)) == 3
    assert all("expected an address that begins with" in why for why in failures(run).values())
    assert [row["file_name"] for row in json.loads(published(run))["images"]] == [
        "memory/pictures/000.png"
    ]


def test_a_store_that_grows_and_is_moved(store, images, tmp_path):
    """From files to a store and to another one; at a place without the images it doesn't go on."""
    run = tmp_path / "run"
    shutil.copytree(images, tmp_path / "before")
    label(tmp_path / "before", run)
    for path in images.iterdir():
        store.pipe(f"/flat/{path.name}", path.read_bytes())
    with pytest.raises(RunError, match=r"now it is memory://flat; .* give --moved"):
        label("memory://flat", run)
    label("memory://flat/", run, moved=True)
    now = open_run(run)
    assert (now.kind, now.origin, now.root) == ("remote", *["memory://flat"] * 2)
    assert isinstance(now.source, RemoteSource)
    store.pipe("/flat/000-new.png", (images / "000.png").read_bytes())
    with pytest.warns(UserWarning, match=r"added since the run began: 000-new\.png"):
        assert label("memory://flat/", run).labelled_now == 1
    assert open_run(run).ids == (1, 2, 3, 4, 5)
    with pytest.raises(RunError, match="only 2 of 5 are there"):
        label("memory://pictures", run, moved=True)
    with pytest.warns(UserWarning, match=r"no longer in the source: 000-new\.png"):
        label(tmp_path / "before", run, moved=True)
    assert (open_run(run).kind, open_run(run).root) == ("files", str(tmp_path / "before"))


# The network between


def test_certificates_and_a_mirror_are_for_images_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"{server.url}/mirror")
    url = f"{network.HUB}/datasets/o/n/resolve/main/a.png"
    assert remote.read_whole(url) == server.content
    server.faults = ["403"] * 2
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    for kind in (ImageError, WeightsError):
        with pytest.raises(kind, match=r"SSL_CERT_FILE names the certificates .*own\.pem, but th"):
            network.session(kind)
    with pytest.raises(ImageError, match="SSL_CERT_FILE names the certificates"):
        remote.read_whole("https://host/a.png")
    (tmp_path / "own.pem").write_text("no certificate")
    with pytest.raises(ImageError, match=r"https://127.0.0.1.* \(certificates of SSL_CERT_FILE="):
        remote.read_whole(server.url.replace("http:", "https:"))


def test_a_proxys_password_is_not_shown(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://me:s3cret@127.0.0.1:9")
    with pytest.raises(ImageError, match=r"through the proxy http://\*\*\*@127\.0\.0\.1:9") as told:
        remote.read_whole("http://host/a.png")
    assert "s3cret" not in str(told.value)


def test_a_librarys_own_words_show_no_password(monkeypatch):
    def fail(*_):
        raise OSError("refused: https://me:s3cret@host/a.png?token=s3cret")

    monkeypatch.setattr(remote, "_from_files", fail)
    why = r"^memory://x/a\.png can't be fetched \(refused: https://host/a\.png\?token=\*\*\*\)"
    with pytest.raises(ImageError, match=why):
        remote.read_whole("memory://x/a.png")
