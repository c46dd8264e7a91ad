"""Images in tars: listings, reading, damage and malice, runs over them."""

import gzip
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
import webdataset
from braceexpand import braceexpand

from clip2sam.analysis.session import Session
from clip2sam.analysis.tune import tune
from clip2sam.cli.groups import listed
from clip2sam.data import tars
from clip2sam.data.containers import read_all
from clip2sam.data.opening import check_found, kind_of, open_source, source_of
from clip2sam.data.patterns import expand_braces
from clip2sam.data.sources import Source, check_output
from clip2sam.data.tars import TarSource
from clip2sam.errors import ConfigError, ImageError, RunError
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from tests.labelling_fakes import Threshold, small_segmenter, write_images


def write_tar(path, members, **settings):
    """A tar of (name or TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    """Two tars of three and two images, as img2dataset writes them."""
    for shard, numbers in enumerate(((2, 0, 1), (3, 4))):
        members = []
        for i in numbers:
            members += [(f"{i:09d}{end}", f"{end} {i}".encode()) for end in (".jpg", ".json")]
        write_tar(tmp_path / "in" / f"{shard:05d}.tar", members)
        (tmp_path / "in" / f"{shard:05d}_stats.json").touch()
        (tmp_path / "in" / f"{shard:05d}.parquet").touch()
    return tmp_path / "in"


KEYS = tuple(f"{t:05d}.tar/{i:09d}.jpg" for t, i in ((0, 2), (0, 0), (0, 1), (1, 3), (1, 4)))


# --- listings


def test_a_folder_of_tars_is_listed_in_their_order(shards):
    source = open_source(shards)
    assert isinstance(source, TarSource)
    assert isinstance(source, Source)
    assert source.keys == KEYS
    assert (source.ids, source.units) == ((1, 2, 3, 4, 5), (3, 2))
    assert source.files == ("00000.tar", "00001.tar")
    assert (source.root, source.origin, kind_of(source)) == (str(shards), str(shards), "tar")
    assert [source.read(key) for key in KEYS] == [f".jpg {i}".encode() for i in (2, 0, 1, 3, 4)]


@pytest.mark.parametrize("pattern", ["{00000..00001}.tar", "0000[01].tar", "{00000,00001}.tar"])
def test_patterns_and_several_are_the_same_images(shards, pattern):
    source = open_source(shards / pattern)
    assert (source.root, source.keys) == (str(shards), KEYS)
    assert source.origin == f"{shards}/{pattern}", "so that a run goes on with the same words"
    assert open_source(source.origin, source.root) == source
    assert open_source([shards / "00001.tar", shards / "00000.tar"]).keys == KEYS
    below = open_source(shards / pattern, shards.parent)
    assert below.keys == tuple(f"in/{key}" for key in KEYS)
    assert below.read(below.keys[1]) == b".jpg 0"
    assert open_source(shards / "00001.tar").keys == KEYS[3:]


def test_tars_are_in_the_order_of_their_bytes(shards):
    (shards / "00001.tar").rename(shards / "a.tar")
    (shards / "00000.tar").rename(shards / "B.tar")
    assert open_source(shards).files == ("B.tar", "a.tar")


def test_a_file_that_gives_little_at_once_is_read_to_the_end(tmp_path):
    class Slow(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 3))

    (tmp_path / "ten").write_bytes(b"0123456789")
    with Slow(tmp_path / "ten") as file:
        assert (read_all(file, 8), read_all(file, 8)) == (b"01234567", b"89")


def test_a_part_is_taken_up_again_with_no_listing(shards, monkeypatch):
    whole, scanned = open_source(shards), []
    part = source_of("tar", whole.origin, whole.root, KEYS[1:4], (2, 3, 4))
    assert part.units == (2, 1)
    scan = tars._scan
    monkeypatch.setattr(tars, "_scan", lambda root, tar: scanned.append(tar) or scan(root, tar))
    assert [part.read(key) for key in (*KEYS[1:3], KEYS[1])] == [b".jpg 0", b".jpg 1", b".jpg 0"]
    assert scanned == ["00000.tar"], "a tar that is not read is not scanned, the others once"
    assert whole.read(KEYS[4]) == b".jpg 4"
    assert len(scanned) == 1, "a listing knows the places"
    assert pickle.loads(pickle.dumps(whole)).read(KEYS[4]) == b".jpg 4"


def test_what_webdataset_writes_is_what_is_read(tmp_path):
    images = write_images(tmp_path / "images", 5)
    data = {f"a/{path.stem}": path.read_bytes() for path in sorted(images.iterdir())}
    with webdataset.ShardWriter(f"{tmp_path}/shard-%03d.tar", maxcount=3, verbose=0) as sink:
        for key, image in data.items():
            sink.write({"__key__": key, "png": image, "mask.png": b"a mask", "cls": 3, "json": {}})
    source = open_source(tmp_path / "shard-{000..001}.tar")
    assert source.units == (6, 4), "two images a sample"
    assert sorted(source.keys)[:2] == ["shard-000.tar/a/000.mask.png", "shard-000.tar/a/000.png"]
    for key in source.keys:
        stem, _, end = key.partition("/")[2].partition(".")
        assert source.read(key) == (data[stem] if end == "png" else b"a mask")


@pytest.mark.parametrize(
    "pattern",
    [
        *("a", "{000..012}.tar", "{0..10..3}", "{5..1}", "{a..e}x{1,2}", "{a,b{1..3}}z", "{{a,b}}"),
        *(
            "{a}",
            "{}",
            "a}b{",
            "{a,}",
            "{01..100}",
            "{1..03}",
            "{-02..2}",
            "{10..0..-5}",
            "{c..a}",
            "{1..a}",
        ),
    ],
)
def test_braces_are_those_of_webdatasets_package(pattern):
    assert expand_braces(pattern) == list(braceexpand(pattern))


def test_missing_tars_are_named(shards):
    with pytest.raises(ImageError, match=r"in/00002\.tar, .*/00003\.tar: no such file; check"):
        open_source(shards / "{00000..00003}.tar")
    with pytest.raises(ImageError, match=r"00006\.tar and 1 more: no such file"):
        open_source(shards / "{00000..00007}.tar")
    with pytest.raises(ImageError, match=r"braces stand for 10000000 paths, expected at most"):
        open_source(shards / "{0..9999999}.tar")
    with pytest.raises(ImageError, match=r"braces stand for 1002001 paths, expected at most"):
        open_source(shards / "{0..1000}{0..1000}.tar")
    with pytest.raises(ImageError, match=r"no image found in .*: looked for files ending in \.tar"):
        open_source(shards / "x*.tar")


def test_folders_that_hold_images_too_give_these(shards):
    (shards / "preview.jpg").touch()
    with pytest.warns(UserWarning, match=r"in: 2 tars beside images are passed over; give .*/\*"):
        source = open_source(shards)
    assert (kind_of(source), source.keys) == ("files", ("preview.jpg",))
    with pytest.raises(ImageError, match="sources of one kind, got files and tar; give them to"):
        open_source([shards / "preview.jpg", shards / "00000.tar"])


def test_nothing_to_read_is_said_beforehand(shards, tmp_path):
    for given in (shards, shards / "*.tar", shards / "00001.tar"):
        check_found(given)
    write_tar(tmp_path / "none" / "a.tar", [("a.txt", b"text"), ("b.jpg/c.txt", b"")])
    for check in (check_found, open_source):
        with pytest.raises(ImageError, match=r"no image found in 1 tars, a\.tar among them: look"):
            check(tmp_path / "none")
        with pytest.raises(ImageError, match=r"00009\.tar: no such file"):
            check(shards / "00009.tar")
        with pytest.raises(ImageError, match=r"preview\.jpg: no such file or folder"):
            check(shards / "preview.jpg")


def test_compressed_tars_are_refused(shards, tmp_path):
    data = (shards / "00000.tar").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    (tmp_path / "b.tar").write_bytes(gzip.compress(data))
    for name in ("a.tar.gz", "b.tar"):
        for look in (open_source, check_found):
            with pytest.raises(ImageError, match=rf"{name}: this tar is compressed, .*decompress"):
                look(tmp_path / name)


# --- damage and malice


def test_a_cut_tar_gives_what_is_in_front_of_the_cut(shards):
    path = shards / "00000.tar"
    data = path.read_bytes()
    last = data.index(b".jpg 1")
    for size, found in ((last + 3, 3), (last - 300, 2), (last - 512, 2), (600, 1), (100, 0)):
        path.write_bytes(data[:size])
        with pytest.warns(UserWarning, match=rf"00000\.tar: .*cut.*the {found} images in front"):
            source = open_source(shards)
        assert source.keys == KEYS[:found] + KEYS[3:]
        check_found(shards)
        assert source.read(KEYS[3]) == b".jpg 3"
    path.write_bytes(data[: last + 3])
    with pytest.warns(UserWarning, match="cut"):
        source = open_source(shards)
    with pytest.raises(ImageError, match=r"000001\.jpg: the tar is cut here; get a whole copy"):
        source.read(KEYS[2])
    path.write_bytes(data[:1024] + b"?" * 512 + data[1536:])
    with pytest.warns(UserWarning, match=r"damaged at byte 1024, .* the 1 images in front"):
        assert open_source(shards).units == (1, 2)


def test_a_tar_that_is_another_one_now_costs_its_images(shards):
    source = open_source(shards)
    write_tar(shards / "00000.tar", [("000000000.jpg", b".jpg 0"), ("x.jpg", b"")])
    for key in KEYS[:2]:
        with pytest.raises(ImageError, match=r"another one than when it was listed; start again"):
            source.read(key)
    part = source_of("tar", source.origin, source.root, KEYS, source.ids)
    assert part.read(KEYS[1]) == b".jpg 0"
    with pytest.raises(ImageError, match=r"002\.jpg: no longer in its tar, where it was when"):
        part.read(KEYS[0])
    (shards / "00001.tar").unlink()
    for one in (source, part):
        with pytest.raises(ImageError, match=r"00001\.tar: no such file in .*; put it back"):
            one.read(KEYS[3])
    with pytest.raises(ImageError, match=r"a/b\.jpg: expected a tar and a name in it"):
        source.read("a/b.jpg")


def test_names_lead_nowhere(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"a secret")
    write_tar(tmp_path / "in" / "inner.tar", [("x.jpg", b"inner")])
    names = ["../secret.jpg", str(secret), "a/../../secret.jpg", "./good.jpg", "a//b.jpg"]
    names += ["../inner.tar/x.jpg", "deep.tar/x.jpg", "caf\udce9.jpg", "x" * 300 + ".jpg"]
    path = write_tar(tmp_path / "in" / "a.tar", [(name, b"own") for name in names])
    source = open_source(path)
    good = ["good.jpg", "a/b.jpg", "deep.tar/x.jpg", "caf\udce9.jpg", "x" * 300 + ".jpg"]
    assert [key for key in source.keys if ".." not in key and str(secret) not in key] == [
        f"a.tar/{name}" for name in good
    ]
    assert len(source.keys) == len(names), "a bad name costs its item, not the listing"
    for key in source.keys:
        if key.removeprefix("a.tar/") in good:
            assert source.read(key) == b"own"
        else:
            with pytest.raises(ImageError, match=r"a\.tar: expected a member's name below the tar"):
                source.read(key)
    (tmp_path / "in" / "out.tar").symlink_to(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", [("a.jpg", b"")])
    with pytest.raises(ImageError, match=r"out\.tar: this link leads out of"):
        open_source(tmp_path / "in")
    write_tar(tmp_path / "x.tar" / "b.tar", [("a.jpg", b"1")])
    assert open_source(tmp_path / "x.tar").keys == ("b.tar/a.jpg",)
    with pytest.raises(ImageError, match=r"x\.tar/b\.tar: a folder in this path ends in \.tar"):
        open_source(tmp_path / "x.tar", tmp_path)


def test_only_regular_members_are_images(tmp_path):
    members = [("a.jpg", b"1")]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo(f"{kind.decode()}.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        members.append((info, b""))
    folder, sparse = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("sparse.jpg")
    folder.type = tarfile.DIRTYPE
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999"}
    members += [(folder, b""), (sparse, b"1"), ("b.JPEG", b"2")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert source.keys == ("a.tar/a.jpg", "a.tar/b.JPEG")


def test_headers_that_lie_about_sizes_end_the_listing(tmp_path, monkeypatch):
    backwards, huge = tarfile.TarInfo("b.jpg"), tarfile.TarInfo("c.jpg")
    backwards.size, huge.size = -1536, 2**62
    good = write_tar(tmp_path / "in" / "a.tar", [("a.jpg", b"1")]).read_bytes()[:1024]
    for header in (backwards, huge):
        block = header.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "in" / "a.tar").write_bytes(good + block + bytes(1024))
        with pytest.warns(UserWarning, match=r"a\.tar: .*; the [12] images in front of that"):
            source = open_source(tmp_path / "in")
        assert source.read("a.tar/a.jpg") == b"1"
    with pytest.raises(ImageError, match=r"c\.jpg: expected at most 200000000 bytes, got 46"):
        source.read("a.tar/c.jpg")
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 10**6
    data = good + name.tobuf(tarfile.GNU_FORMAT) + b"x" * 10**6 + bytes(2048)
    (tmp_path / "in" / "a.tar").write_bytes(data)
    with pytest.warns(UserWarning, match=r"a header of 1000448 bytes\); the 1 images in front"):
        open_source(tmp_path / "in")


def test_of_a_name_that_is_there_twice_the_last_counts(tmp_path):
    members = [("a.jpg", b"old"), ("b.jpg", b"b"), ("./a.jpg", b"new")]
    with pytest.warns(
        UserWarning, match=r"a\.tar: 1 images have the name of an earlier one, a\.ta"
    ):
        source = open_source(write_tar(tmp_path / "a.tar", members))
    assert source.keys == ("a.tar/a.jpg", "a.tar/b.jpg")
    assert source.read("a.tar/a.jpg") == b"new"


def test_threads_read_many_tars_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "TARS_AT_HAND", 2)
    for tar in range(6):
        write_tar(
            tmp_path / f"{tar}.tar", [(f"{i}.png", f"{tar} {i}".encode() * 500) for i in range(40)]
        )
    source = open_source(tmp_path)
    part = source_of("tar", source.origin, source.root, source.keys, source.ids)
    keys = [f"{i % 6}.tar/{i % 40}.png" for i in range(600)]
    with ThreadPoolExecutor(8) as pool:
        for one in (source, part):
            data = list(pool.map(one.read, keys))
            assert data == [f"{i % 6} {i % 40}".encode() * 500 for i in range(600)]
            assert len(one._places._at_hand) == 2, "few are looked up by a dict"


# --- outputs and runs


@pytest.mark.parametrize("given", [".", "*.tar", "{00000..00001}.tar", "00000.tar"])
def test_what_is_read_is_never_written_to(shards, tmp_path, given):
    source = open_source(shards / given)
    for output in (shards, shards / "00000.tar"):
        with pytest.raises(ConfigError, match="which is never written to; give one elsewhere"):
            check_output(source, output)
    check_output(source, tmp_path / "run")


@pytest.fixture
def images(tmp_path):
    """Images as files, the same in two tars, and the names of both."""
    folder = write_images(tmp_path / "files", 9)
    (folder / "004.png").write_bytes(b"not an image")
    names = [f"{i:03d}.png" for i in range(9)]
    for tar, some in (("0.tar", names[:5]), ("1.tar", names[5:])):
        members = [(name, (folder / name).read_bytes()) for name in some]
        write_tar(tmp_path / "tars" / tar, members)
    return folder, tmp_path / "tars"


def label(source, run, **options):
    engine = Threshold()
    return label_dataset(source, engine.classes, run, engine=engine, readers=1, **options)


def test_a_run_over_tars_is_that_over_files(images, tmp_path):
    files, shards = images
    label(files, tmp_path / "of files")
    engine, run = Threshold(), tmp_path / "run"
    records = label_dataset_iter(
        str(shards), engine.classes, run, engine=engine, batch_size=1, readers=1
    )
    next(records)
    records.close()
    summary = label(str(shards), run)
    assert 0 < summary.labelled_now < summary.listed == 9
    (failure,) = summary.failures
    assert failure["file_name"] == "0.tar/004.png"
    assert "expected an image" in failure["reason"]
    written = (folder / "annotations.json" for folder in (run, tmp_path / "of files"))
    text, expected = (path.read_text() for path in written)
    for tar in ("0.tar/", "1.tar/"):
        text = text.replace(tar, "")
    rows, others = json.loads(text), json.loads(expected)
    assert rows.pop("info").keys() == others.pop("info").keys()
    assert rows == others
    assert json.loads((run / "manifest.json").read_text())["kind"] == "tar"


def test_tars_that_come_later_are_labelled_behind_the_others(images, tmp_path):
    files, shards = images
    label(str(shards), tmp_path / "run")
    write_tar(shards / "00.tar", [("a.png", (files / "000.png").read_bytes())])
    with pytest.warns(UserWarning, match=r"1 images were added since the run began: 00\.tar/a\.p"):
        summary = label(str(shards), tmp_path / "run")
    assert (summary.listed, summary.labelled_now) == (10, 1)
    rows = json.loads((tmp_path / "run" / "annotations.json").read_text())["images"]
    assert rows[-1]["file_name"] == "00.tar/a.png"
    assert rows[-1]["id"] == 10
    (shards / "loose.png").write_bytes((files / "000.png").read_bytes())
    with (
        pytest.warns(UserWarning, match="tars beside images are passed over"),
        pytest.raises(RunError, match=r"began with images of the kind 'tar', now .* \('files'\)"),
    ):
        label(str(shards), tmp_path / "run")


def test_other_jobs_take_tars_as_well(images):
    _, shards = images
    segmenter = small_segmenter()
    assert kind_of(listed([str(shards / "{0..1}.tar")])) == "tar"
    tuning = tune(segmenter, shards / "1.tar", ["cat"])
    assert tuning.images == ("1.tar/005.png", "1.tar/006.png", "1.tar/007.png", "1.tar/008.png")
    session = Session(segmenter, shards / "1.tar", ["cat"])
    assert (session.count, session.name) == (4, "1.tar/005.png")


@pytest.fixture
def store(shards):
    """The tars in fsspec's memory; its files by path."""
    files = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        files.pipe_file(f"/top/tars/{path.name}", path.read_bytes())
    yield files.store
    files.store.clear()


@pytest.mark.parametrize("pattern", ["{00000..00001}.tar", "*.tar"])
def test_tars_at_addresses_are_read_in_place(store, pattern):
    given = f"memory://top/tars/{pattern}"
    source = open_source(given)
    check_found(given)
    assert (source.origin, source.root, source.keys) == (given, "memory://top/tars", KEYS)
    assert [source.read(key) for key in KEYS] == [f".jpg {i}".encode() for i in (2, 0, 1, 3, 4)]
    assert open_source(source.origin, source.root) == source
    check_output(source, "anywhere")
    assert open_source(given, "memory://top").keys == tuple(f"tars/{key}" for key in KEYS)


def test_what_is_wrong_with_tars_at_addresses_is_said(store, tmp_path):
    source = open_source("memory://top/tars/*.tar")
    store["/top/tars/00000.tar"] = store["/top/tars/00001.tar"]
    with pytest.raises(ImageError, match=r"002\.jpg: this tar is another one than when it was"):
        source.read(KEYS[0])
    for look in (open_source, check_found):
        with pytest.raises(ImageError, match=r"memory://top/tars/9\.tar"):
            look("memory://top/tars/9.tar")
        with pytest.raises(ImageError, match="a name, a password or a signature in this address"):
            look("https://name:secret@example.com/0.tar")
    with pytest.raises(ConfigError, match="the network is not to be used"):
        check_found("https://example.com/{0..3}.tar", offline=True)
    with pytest.raises(ImageError, match="expected paths or addresses, got both"):
        open_source(["memory://top/tars/00000.tar", str(tmp_path / "a.tar")])
    with pytest.raises(ImageError, match="have no folder in common"):
        open_source(["memory://top/tars/00000.tar", "s3://tars/00000.tar"])
