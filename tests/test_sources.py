"""What is labelled: lists from every kind of source, and names that must not lead anywhere else."""

import json
import os

import pytest

from clip2sam.data.sources import checked_key, find_source, locate
from clip2sam.errors import ImageError


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
    assert source.root == str(tree)
    assert [source.image_id(i) for i in range(5)] == [1, 2, 3, 4, 5]


def test_links_to_folders_are_not_followed(tree):
    (tree / "sub" / "loop").symlink_to(tree)
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
    ],
)
def test_globs(tree, pattern, keys):
    assert list(find_source(f"{tree}/{pattern}").keys) == keys


def test_a_name_with_a_bracket_that_exists_is_no_glob(tree):
    (tree / "x[1].png").write_bytes(b"")
    assert find_source(tree / "x[1].png").keys == ("x[1].png",)


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
    assert [source.image_id(i) for i in range(3)] == [9, 3, 7]


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a/../../x", "a\0.png", "", "."])
def test_names_that_lead_out_are_refused_with_their_line(tree, name):
    with pytest.raises(ImageError, match=r"here: expected the path of a picture below the root"):
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
        ([{"id": 0, "file_name": "a"}], "an id from 1, got 'a' and 0"),
        ([{"id": True, "file_name": "a"}], "an id from 1"),
        ([{"id": 1}], "expected a file_name"),
        (["a"], "expected a file_name"),
        ([{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "given twice"),
        ([{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}], "twice, under two ids"),
        ([], "no picture found"),
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
    assert locate(str(tree), "in.png") == str(tree / "b.jpg")
    for key in ("out.png", "outside/secret.png"):
        with pytest.raises(ImageError, match="leads out of"):
            locate(str(tree), key)
    (tmp_path / "alias").symlink_to(tree)
    assert locate(str(tmp_path / "alias"), "b.jpg") == str(tree / "b.jpg")


def test_nothing_to_label_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no picture found"):
        find_source(tmp_path / "empty")
    with pytest.raises(ImageError, match="no such file or folder"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no such folder"):
        find_source(f"{tmp_path}/nowhere/*.png")
    with pytest.raises(ImageError, match="check the root"):
        find_source(tmp_path / "empty", tmp_path / "nowhere")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ImageError, match="no JSON"):
        find_source(tmp_path / "x.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(tree):
    (tree / "sub").chmod(0)
    with pytest.raises(ImageError, match="can't be read"):
        find_source(tree)
    (tree / "sub").chmod(0o755)
