"""Sources: listings of every kind, names that must not lead elsewhere, outputs that are refused."""

import json
import os
from pathlib import Path

import pytest

from clip2sam.data.sources import (
    FileSource,
    Source,
    check_found,
    check_output,
    checked_key,
    find_source,
)
from clip2sam.errors import ConfigError, ImageError


@pytest.fixture
def tree(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/a.png", "sub/deep/c.webp", "sub/notes.txt", "ä/ö.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "in"


def test_a_folder_is_listed_through_all_levels_sorted_by_bytes(tree):
    source = find_source(tree)
    assert source.keys == ("a.PNG", "b.jpg", "sub/a.png", "sub/deep/c.webp", "ä/ö.png")
    assert source.root == source.origin == str(tree)
    assert source.ids == (1, 2, 3, 4, 5)
    assert find_source(str(tree)) == find_source([tree]) == source
    assert isinstance(source, Source)


def test_every_suffix_of_images_is_listed_in_any_case(tmp_path):
    names = ["b.JPG", "a.jpeg", "sub/deep/c.webp", "sub/x.tiff", "d.tif", "e.gif", "f.bmp", "Z.png"]
    for name in [*names, "notes.txt", "sub/readme.md", "jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to("Z.png")
    assert list(find_source(tmp_path).keys) == sorted([*names, "link.png"])


def test_the_root_of_one_folder_is_that_folder_whatever_is_in_it(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.png").touch()
    assert find_source(tmp_path / "in").keys == ("deep/a.png",)
    below = find_source(tmp_path / "in" / "deep", tmp_path)
    assert (below.root, below.keys) == (str(tmp_path), ("in/deep/a.png",))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ImageError, match=r"a\.png: this image lies outside of the root .*--root"):
        find_source(tmp_path / "in", tmp_path / "elsewhere")


def test_names_that_are_not_utf8_are_listed_sorted_by_bytes_and_read(tmp_path):
    names = (b"caf\xe9.png", b"new\nline.png", b"z.png", b"\x80.png", "ä.png".encode())
    for name in reversed(names):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    expected = tuple(map(os.fsdecode, names))  # as text, "ä" would come before the byte 80
    for source in (find_source(tmp_path), find_source(f"{tmp_path}/*.png")):
        assert source.keys == expected
        assert os.path.isfile(source.read(source.keys[0]))


@pytest.mark.parametrize("pattern", ["", "/**/*"])
def test_links_to_folders_are_not_followed(tree, pattern):
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "sub" / "again").symlink_to(tree)  # two of them have 2**40 paths
    keys = find_source(f"{tree}{pattern}").keys
    assert [k for k in keys if not k.endswith(".txt")] == list(find_source(tree).keys)
    assert len(find_source(tree).keys) == 5


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.jpg", ["b.jpg"]),
        ("**/*.png", ["sub/a.png", "ä/ö.png"]),
        ("sub/**", ["a.png", "deep/c.webp", "notes.txt"]),
        ("[!b].*", ["a.PNG"]),
        ("su?/[a-b].png", ["sub/a.png"]),
        ("*", ["a.PNG", "b.jpg"]),
        ("**", ["a.PNG", "b.jpg", "sub/a.png", "sub/deep/c.webp", "sub/notes.txt", "ä/ö.png"]),
        ("**/deep/**/*.webp", ["sub/deep/c.webp"]),
        ("s**/*.png", ["sub/a.png"]),
    ],
)
def test_globs(tree, pattern, keys):
    assert list(find_source(f"{tree}/{pattern}").keys) == keys


def test_a_glob_takes_hidden_files_too(tree):
    (tree / ".hidden").mkdir()
    for name in (".hidden/x.jpg", ".x.jpg"):
        (tree / name).touch()
    assert find_source(f"{tree}/**/*.jpg").keys == (".hidden/x.jpg", ".x.jpg", "b.jpg")


def test_a_name_with_a_bracket_that_exists_is_no_glob(tree):
    (tree / "x[1].png").write_bytes(b"")
    assert find_source(tree / "x[1].png").keys == ("x[1].png",)
    (tree / "run[1]").mkdir()
    (tree / "run[1]" / "a.png").touch()
    inside = find_source(f"{tree}/run[1]/*.png")
    assert (inside.root, inside.keys) == (f"{tree}/run[1]", ("a.png",))


def test_several_files_folders_and_globs_have_the_deepest_common_folder(tree, tmp_path):
    odd = tree / "sub" / "notes.txt"
    source = find_source([tree / "ä", tree / "sub" / "deep", tree / "sub" / "deep" / "c.webp"])
    assert (source.root, source.keys) == (str(tree), ("sub/deep/c.webp", "ä/ö.png"))
    assert source.ids == (1, 2)
    assert find_source([tree / "sub" / "a.png", tree / "sub" / "deep"]).keys == (
        "a.png",
        "deep/c.webp",
    )
    assert find_source([f"{tree}/*.jpg", tree / "ä"], tmp_path).keys == ("in/b.jpg", "in/ä/ö.png")
    assert find_source([tree / "b.jpg", str(tree / "b.jpg")]) == find_source(tree / "b.jpg")
    with pytest.raises(ImageError, match=r"notes\.txt: expected folders, globs .*file alone"):
        find_source([tree, odd])
    with pytest.raises(ImageError, match=r"missing: no such file or folder"):
        find_source([tree, tree / "missing"])


def test_a_file_given_by_name_is_taken_whatever_its_suffix(tree):
    (tree / "scan").touch()
    assert find_source(tree / "scan").keys == ("scan",)


def test_lists_are_relative_to_their_own_folder_or_to_the_root(tree, tmp_path):
    (tree / "list.txt").write_bytes(b"\xef\xbb\xbfsub//a.png\r\n\n./b.jpg\nbad\xff.png\nb.jpg\n")
    source = find_source(tree / "list.txt")
    assert source.keys == ("b.jpg", "bad\udcff.png", "sub/a.png")
    (tmp_path / "list.csv").write_text('id,file_name\n1,"sub/a.png"\n2,b.jpg\n')
    assert find_source(tmp_path / "list.csv", tree).keys == ("b.jpg", "sub/a.png")
    assert find_source(tmp_path / "list.csv", tree).root == str(tree)
    (tmp_path / "plain.csv").write_text("b.jpg,1\nsub/a.png,2\n")
    assert find_source(tmp_path / "plain.csv", tree).keys == ("b.jpg", "sub/a.png")


def test_a_coco_files_own_ids_are_kept(tree):
    images = [
        {"id": 7, "file_name": "sub/a.png"},
        {"id": 3, "file_name": "b.jpg"},
        {"id": 9, "file_name": "a.PNG"},
    ]
    (tree / "data.json").write_text(json.dumps({"images": images}))
    source = find_source(tree / "data.json")
    assert source.keys == ("a.PNG", "b.jpg", "sub/a.png")
    assert source.ids == (9, 3, 7)


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x", "a\0.png", "", "."])
def test_names_that_lead_out_are_refused_with_their_line(tree, name):
    with pytest.raises(ImageError, match=r"here: expected the path of an image below the root"):
        checked_key(name, "here")
    if name and "\0" not in name:
        (tree / "list.txt").write_text(f"b.jpg\n{name}\n")
        with pytest.raises(ImageError, match=r"list\.txt, line 2: expected"):
            find_source(tree / "list.txt")
    (tree / "data.json").write_text(json.dumps({"images": [{"id": 1, "file_name": name}]}))
    with pytest.raises(ImageError, match=r"data\.json, images\[0\]: expected"):
        find_source(tree / "data.json")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"id": 0, "file_name": "a"}], "an id from 1 to .*, got 'a' and 0"),
        ([{"id": True, "file_name": "a"}], "an id from 1"),
        ([{"id": 1}], "expected a file_name"),
        (["a"], "expected a file_name"),
        ([{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "given twice"),
        ([{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}], "twice, under two ids"),
        ([], "no image found"),
        (None, "a list of images"),
    ],
)
def test_coco_files_without_usable_images_are_refused(tree, images, message):
    (tree / "data.json").write_text(json.dumps({"images": images}))
    with pytest.raises(ImageError, match=message):
        find_source(tree / "data.json")


def test_links_lead_out_of_the_root_nowhere(tree, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    (tree / "out.png").symlink_to(tmp_path / "secret.png")
    (tree / "outside").symlink_to(tmp_path)
    (tree / "in.png").symlink_to(tree / "b.jpg")
    source = find_source(tree)
    assert source.read("in.png") == str(tree / "b.jpg")
    for key in ("out.png", "outside/secret.png"):
        with pytest.raises(ImageError, match="leads out of"):
            source.read(key)
    (tmp_path / "alias").symlink_to(tree)
    assert find_source(tmp_path / "alias").read("b.jpg") == str(tree / "b.jpg")


def test_nothing_to_label_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"no image found in .*: looked for names ending in \.bmp"):
        find_source(tmp_path / "empty")
    with pytest.raises(ImageError, match="no image found in an empty list of paths"):
        find_source([])
    with pytest.raises(ImageError, match="no such file or folder"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no such folder"):
        find_source(f"{tmp_path}/nowhere/*.png")
    with pytest.raises(ImageError, match="check the root"):
        find_source(tmp_path / "empty", tmp_path / "nowhere")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ImageError, match="no JSON"):
        find_source(tmp_path / "x.json")


@pytest.mark.parametrize("number", [0, -1, 2**53, 10**400, True, 1.0, "1", None, [1]])
def test_ids_that_are_not_cocos_are_refused(tmp_path, number):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": number, "file_name": "a.png"}]}))
    with pytest.raises(ImageError, match=r"images\[0\]: .* an id from 1 to 2\*\*53 - 1") as caught:
        find_source(path)
    assert len(str(caught.value)) < 300
    path.write_text(json.dumps({"images": [{"id": 2**53 - 1, "file_name": "a.png"}]}))
    assert find_source(path).ids == (2**53 - 1,)


def test_whether_there_is_an_image_is_found_out_without_listing_all(tree, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("")
    for source in ("empty", "empty.txt", "empty/*.jpg", "nowhere", "nowhere/*.jpg"):
        with pytest.raises(ImageError) as listed:
            find_source(tmp_path / source)
        with pytest.raises(ImageError) as looked:
            check_found(tmp_path / source)
        assert str(looked.value) == str(listed.value)
    with pytest.raises(ImageError, match="check the root"):
        check_found(tree, tmp_path / "nowhere")

    def two_files(top):
        yield os.path.join(top, "a.png")
        raise AssertionError("the first image is enough")

    monkeypatch.setattr("clip2sam.data.sources.walk", two_files)
    check_found(tree)


def test_names_that_no_file_can_have_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"images": [{"id": 1, "file_name": "a\\ud800.png"}]}')
    with pytest.raises(ImageError, match=r"images\[0\]: expected a name that a file can have"):
        find_source(path)
    # the bytes of an é, each as an escape, beside the é
    rows = [(1, r"\udcc3\udca9.png"), (2, "é.png")]
    text = ", ".join(f'{{"id": {i}, "file_name": "{name}"}}' for i, name in rows)
    path.write_text(f'{{"images": [{text}]}}')
    with pytest.raises(ImageError, match=r"'é\.png' is there twice, under two ids"):
        find_source(path)


def test_a_folder_that_cannot_be_read_is_an_error(tree, monkeypatch):
    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr("os.scandir", denied)  # a mode of 000 would not stop root
    with pytest.raises(ImageError, match=r"this folder can't be read \(Permission denied\)"):
        find_source(tree)


# --- outputs


def listed(tree: Path, name: str) -> Path:
    """A list or COCO file in the folder above, of b.jpg and sub/a.png below `tree`."""
    path = tree.parent / name
    rows = [{"id": i, "file_name": n} for i, n in enumerate(("in/b.jpg", "in/sub/a.png"), 1)]
    lines = "\n".join(row["file_name"] for row in rows)
    path.write_text(json.dumps({"images": rows}) if name.endswith(".json") else lines)
    return path


@pytest.mark.parametrize(
    ("source", "refused", "allowed"),
    [
        ("in", ["in", "in/out", "in/sub/out.json", "link/out"], [".", "out", "in2", "in.json"]),
        ("link", ["in", "in/out", "link/x"], [".", "out"]),
        ("in/**/*.png", ["in", "in/out", "in/ä/x"], [".", "out", "in2"]),
        ("in/sub/*.png", ["in/sub", "in/sub/out"], ["in/out", "in"]),
        (["in/sub", "in/b.jpg"], ["in", "in/sub/out", "in/b.jpg"], ["in/out", "out", "."]),
        ("in/b.jpg", ["in", "in/b.jpg"], ["in/out", "."]),
        ("list.txt", [".", "list.txt", "in", "in/sub", "in/b.jpg"], ["out", "in/out", "x.json"]),
        ("data.json", [".", "data.json", "in", "in/sub", "in/sub/a.png"], ["out", "in/out"]),
    ],
)
def test_what_is_read_is_never_written_to(tree, source, refused, allowed):
    top = tree.parent
    (top / "link").symlink_to(tree)
    if isinstance(source, str) and source.endswith((".txt", ".json")):
        listed(tree, source)
    found = find_source(
        f"{top}/{source}" if isinstance(source, str) else [top / name for name in source]
    )
    for output in refused:
        with pytest.raises(ConfigError, match="which is never written to; give one elsewhere"):
            check_output(found, top / output)
    for output in allowed:
        check_output(found, top / output)


def test_a_relative_output_and_a_list_that_is_gone_are_checked_too(tree, monkeypatch):
    listed(tree, "list.txt")
    found = find_source(tree.parent / "list.txt")
    (tree.parent / "list.txt").unlink()
    monkeypatch.chdir(tree)
    with pytest.raises(ConfigError, match=r"the output \. lies where images are read"):
        check_output(found, ".")
    check_output(found, "out")


def test_a_source_of_ones_own_is_a_source():
    class Numbers:
        origin, keys, ids = "numbers", ("1", "2"), (1, 2)

        def read(self, key):
            return key.encode()

    assert isinstance(Numbers(), Source)
    check_output(Numbers(), "anywhere")
    assert not isinstance(Numbers(), FileSource)
