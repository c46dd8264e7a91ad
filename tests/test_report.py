"""The page's folder: what its files say, and that nothing in them can do harm."""

import json
import re
import weakref
from dataclasses import replace

import PIL.Image
import pytest

from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError, RunError
from clip2sam.labelling.reviewing import open_review
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from clip2sam.review import page
from clip2sam.review.page import write_report
from tests.documents import ROOT
from tests.labelling_fakes import Threshold, write_images
from tests.review_runs import HTML, box, found, make_run, record

ASSETS = ROOT / "clip2sam" / "review"
ODD = f"{HTML}</script>\u2028ü.png"

RECORDS = (
    record(
        7,
        "a.png",
        (0.52, 0.29),
        found("cat", box(0, 0, 30, 20)),
        found("cat", box(30, 20, 30, 20), 0.25, 0.1),  # weak beside the first
        found(HTML, box(6, 6, 12, 12), 0.75),  # its presence is below the threshold
    ),
    record(3, ODD, (None, 0.9), beaten=(False, True)),
    ImageRecord(4, "c.png", state="failed", reason="c.png: it is <b>cut</b>"),
)


def data(folder, kind, number=0):
    """What one of the page's scripts hands to `take`."""
    name = "run.js" if kind == "run" else f"{kind}/{number}.js"
    text = (folder / "report" / name).read_bytes().decode("ascii")
    start = f'take("{kind}",{number},'
    assert text.startswith(start)
    assert text.endswith(");\n")
    return json.loads(text[len(start) : -3])


def test_the_page_is_told_what_the_run_has(tmp_path):
    run = make_run(tmp_path, RECORDS)
    told = []
    written = write_report(run, on_image=lambda *counts: told.append(counts))
    folder = run / "report"
    assert written == folder / "index.html"
    assert told == [(3, 3)]

    about = data(folder, "run")
    assert [about[k] for k in ("images", "done", "empty", "failed", "waiting")] == [3, 1, 1, 1, 0]
    cat, html = about["classes"]
    assert (cat["name"], cat["prompts"], cat["threshold"]) == ("cat", ["cat", "kitten"], 0.5)
    assert (cat["floor"], cat["images"], cat["masks"], html["masks"]) == (0.45, 1, 1, 0)
    assert (html["name"], html["histogram"]) == (HTML, {"0.28": 1, "0.9": 1})
    assert about["asked"]["preset"] == "by hand"
    assert about["settings"]["engine"]["config"] == {"grid": 8}

    first, second, third = data(folder, "overview")
    masks = [[0, 0.9, 1], [0, 0.25, 0], [1, 0.75, 0]]
    assert first == ["a.png", 0, 40, 60, "", [0.52, 0.29], [], masks, ""]
    assert second[1:] == [1, 40, 60, "", [None, 0.9], [1], [], ""]
    assert third == ["c.png", 2, 0, 0, "c.png: it is <b>cut</b>", [], [], [], ""]

    share, path, points = data(folder, "details")[0][0]
    assert (share, points) == (1.0, [[25, 50, 1], [500, 50, 0]])
    corners = [tuple(map(int, c)) for c in re.findall(r"(\d+) (\d+)", path)]
    assert set(corners) == {(0, 0), (500, 0), (500, 333), (0, 333)}
    assert re.fullmatch(r"M[\d ]+Z", path)
    with PIL.Image.open(folder / "report/pictures/0/1.jpg") as small:
        assert (small.format, small.size) == ("JPEG", (60, 40))
    assert not (folder / "report/pictures/0/2.jpg").exists(), "failed images are not read again"


def test_the_page_is_told_what_a_person_decided(tmp_path):
    run = make_run(tmp_path, RECORDS)
    with open_review(run) as review:
        review.write(7, "rejected")
        review.write(3, "accepted")
    folder = write_report(run).parent
    about = data(folder, "run")
    keys = ("done", "empty", "failed", "rejected", "reviewed", "waiting")
    assert [about[key] for key in keys] == [0, 1, 1, 1, 2, 0]
    rejected, accepted, _ = data(folder, "overview")
    assert rejected[7:] == [[[0, 0.9, 0]], "rejected"]
    assert accepted[7:] == [[], "accepted"]


def test_no_name_can_end_a_string_or_a_script(tmp_path):
    folder = write_report(make_run(tmp_path, RECORDS)).parent
    scripts = [p for p in folder.rglob("*.js") if p.name not in ("page.js", "data.js")]
    assert len(scripts) == 3
    for path in scripts:
        text = path.read_bytes().decode("ascii")
        assert "<" not in text
        assert text.count("\n") == 1
    assert "<img" in data(folder, "overview")[1][0]


def test_the_page_has_no_way_to_the_network_or_to_html():
    scripts = "".join((ASSETS / name).read_text() for name in ("data.js", "page.js"))
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
    ):
        assert way not in scripts
    every = scripts + (ASSETS / "page.html").read_text() + (ASSETS / "page.css").read_text()
    assert re.findall(r"\w+://[^\"'`\s]*", every) == ["http://www.w3.org/2000/svg"]
    assert "url(" not in every
    assert "default-src 'none'" in every


def test_images_come_in_files_of_a_few(tmp_path, monkeypatch):
    for name, count in (("DETAILS", 2), ("OVERVIEW", 4), ("PICTURES", 3)):
        monkeypatch.setattr(page, name, count)
    many = [record(n + 1, f"{n}.png", (0.6, 0.0), found("cat", box(n, 0, 6, 6))) for n in range(9)]
    folder = write_report(make_run(tmp_path, many)).parent
    rows = [data(folder, "overview", n) for n in range(3)]
    assert [len(part) for part in rows] == [4, 4, 1]
    assert [row[0] for part in rows for row in part] == [f"{n}.png" for n in range(9)]
    details = [data(folder, "details", n) for n in range(5)]
    assert [len(part) for part in details] == [2, 2, 2, 2, 1]
    lefts = [int(one[0][1][1:].split()[0]) for part in details for one in part]
    assert lefts == [round(n * 1000 / 60) for n in range(9)]
    pictures = {p.relative_to(folder / "report/pictures").as_posix() for p in folder.rglob("*.jpg")}
    assert pictures == {f"{n // 3}/{n}.jpg" for n in range(9)}
    about = data(folder, "run")
    assert [about[k] for k in ("recorded", "details", "overview", "pictures")] == [9, 2, 4, 3]


def test_few_records_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "DETAILS", 3)
    alive, most, draw = weakref.WeakSet(), [], page.detail_row

    class Known:
        """Of a record: it is hashable, and gone when the record is."""

    def counted(one):
        known = Known()
        object.__setattr__(one, "known", known)
        alive.add(known)
        most.append(len(alive))
        return draw(one)

    monkeypatch.setattr(page, "detail_row", counted)
    write_report(make_run(tmp_path, [record(n, f"{n}.png", (0.1, 0.1)) for n in range(1, 31)]))
    assert len(most) == 30
    assert max(most) <= 9


def test_an_image_that_cant_be_read_says_why(tmp_path):
    run = make_run(tmp_path, RECORDS[:2])
    (tmp_path / "images/a.png").unlink()
    PIL.Image.new("RGB", (10, 20)).save(tmp_path / "images" / ODD, "PNG")
    rows = data(write_report(run).parent, "overview")
    assert "a.png: no such file; check the path" in rows[0][4]
    assert "it was 40 x 60 (height x width), and is now 20 x 10" in rows[1][4]
    assert rows[0][7], "its masks are there all the same"


def test_images_of_an_object_have_no_picture(tmp_path):
    class Own:
        origin, keys, ids = "own", ("a.png",), (7,)

        def read(self, key):
            raise AssertionError("it is not there any more")

    folder = write_report(make_run(tmp_path, RECORDS[:1], source=Own())).parent
    assert data(folder, "overview")[0][4].startswith("no picture: the images of this run came from")


def test_an_unfinished_run_in_shards_is_shown_as_far_as_it_is(tmp_path, monkeypatch):
    images, run = write_images(tmp_path / "images", 7), tmp_path / "run"
    given = (images, ["red", "green", "blue"], run)
    options = {"readers": 1, "batch_size": 1}
    label_dataset(*given, engine=Threshold(group=1), shard="1/2", **options)
    folder = write_report(run, tmp_path / "page").parent
    about = data(folder, "run")
    assert (about["images"], about["recorded"], about["waiting"]) == (7, 3, 4)
    second = label_dataset_iter(*given, engine=Threshold(group=1), shard="2/2", **options)
    next(second)
    second.close()
    write_report(run, tmp_path / "page")
    about, rows = data(folder, "run"), data(folder, "overview")
    assert 4 <= about["recorded"] == len(rows)
    assert [row[0] for row in rows] == sorted(p.name for p in images.iterdir())[: len(rows)]
    assert len(list(folder.rglob("*.jpg"))) == len(rows)
    with pytest.raises(ConfigError, match="lies among the run's own shards"):
        write_report(run, run / "shards" / "page")


def test_an_earlier_report_is_replaced_and_other_files_stay(tmp_path):
    run, output = make_run(tmp_path, RECORDS), tmp_path / "page"
    write_report(run, output)
    (output / "report/details/99.js").touch()
    (output / "notes.txt").write_text("mine")
    (output / ".report.tmp.killed").mkdir()
    write_report(run, output)
    assert {p.name for p in output.iterdir()} == {"index.html", "report", "notes.txt"}
    assert not (output / "report/details/99.js").exists()


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    run = make_run(tmp_path, RECORDS)
    write_report(run)
    monkeypatch.setattr(page, "about_run", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run)
    assert data(run / "report", "run")["images"] == 3
    assert {p.name for p in (run / "report").iterdir()} == {"index.html", "report"}


def test_outputs_that_would_do_harm_are_refused(tmp_path):
    run = make_run(tmp_path, RECORDS)
    with pytest.raises(ConfigError, match="images are read"):
        write_report(run, tmp_path / "images")
    with pytest.raises(ConfigError, match="images are read"):
        write_report(run, tmp_path / "images" / "page")
    with pytest.raises(ConfigError, match=r"manifest.json is the run's own file"):
        write_report(run, run / "manifest.json")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"index.html in it is not that of an earlier report"):
        write_report(run, tmp_path / "site")
    assert (tmp_path / "site/index.html").read_text() == "mine"
    with pytest.raises(RunError, match="expected the output folder of 'clip2sam label'"):
        write_report(tmp_path / "site")


def test_masks_without_a_pixel_have_no_outline(tmp_path):
    nothing = replace(RECORDS[0], annotations=(found("cat", box(0, 0, 0, 0)),))
    folder = write_report(make_run(tmp_path, [nothing])).parent
    assert data(folder, "details")[0][0][1] == ""


def test_the_command_says_what_to_open(tmp_path, command_line):
    run = make_run(tmp_path, RECORDS)
    code, printed, _ = command_line("report", run, "-o", tmp_path / "page")
    assert not code
    assert "".join(printed.split()) == "".join(
        f"open {tmp_path / 'page' / 'index.html'} in a browser".split()
    )
