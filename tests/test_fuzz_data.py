"""Whatever stands in a file, reading it ends in a value or in an error of our own, never in another
exception."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from clip2sam.coco.document import coco_document
from clip2sam.coco.rle import encode_mask
from clip2sam.coco.validate import validate
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelClass, as_label_set, labels_yaml
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.data.sources import find_source
from clip2sam.errors import Clip2SamError
from clip2sam.export.coco import read_coco

pytestmark = pytest.mark.filterwarnings("ignore:labels that (differ only|look like)")
bounded = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

texts = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["classes", "name", "prompts", "images", "file_name", "id", "a.png", "../a", "\ud800", "{}"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, -1, 0, 1, 10**400])
    | st.floats()
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
files = (
    st.binary(max_size=60)
    | values.map(lambda value: json.dumps(value).encode())
    | st.text(st.sampled_from("ab: -[]{}\"'\n,#&*!|>%@`?\t\0\\é1.~"), max_size=60).map(str.encode)
)

MASK = np.pad(np.ones((3, 4), bool), 2)
CLASSES = (LabelClass("cat", ("cat",), 0.1, "pet"), LabelClass("dog", ("dog", "hound")))
DOCUMENTS = [
    coco_document(
        [
            ImageRecord(i, f"sub/{i}.png", (7, 8), annotations=(annotation,))
            for i, annotation in enumerate([Annotation("cat", encode_mask(MASK), 0.5)] * 2, 1)
        ],
        CLASSES,
        polygons=polygons,
    )
    for polygons in (False, True)
]
LABELS = labels_yaml(as_label_set(["cat", "traffic light"], distractors=["sky"])).encode()


@st.composite
def changed(draw, value):
    """A JSON value with something else somewhere in it."""
    root = json.loads(json.dumps(value))
    node = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.integers(0, 4)) == 0:
            node[key] = draw(values)
            return root
        node = node[key]


@st.composite
def damaged(draw, data):
    """Bytes that are cut, or of which some are others."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


cocos = (
    files
    | st.sampled_from(DOCUMENTS).flatmap(changed).map(lambda value: json.dumps(value).encode())
    | damaged(json.dumps(DOCUMENTS[0]).encode())
)


@pytest.fixture
def write(tmp_path):
    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return written


@bounded
@given(data=files | damaged(LABELS), suffix=st.sampled_from([".yaml", ".json"]))
@example(data=b"? [a]\n: b\n", suffix=".yaml")
@example(data=b"&a [*a]", suffix=".yaml")
@example(data=b"<<: 1\n", suffix=".yaml")
@example(data=b"[" * 2000, suffix=".yaml")
@example(data=b"- !!binary a\n- !!float x\n- !!timestamp y", suffix=".yaml")
@example(data=b"- 1" + b"0" * 5000, suffix=".yaml")
@example(data=b"- {name: a, presence_threshold: 1" + b"0" * 400 + b"}", suffix=".yaml")
def test_labels_files(write, data, suffix):
    with contextlib.suppress(Clip2SamError):
        made = as_label_set(write(f"labels{suffix}", data))
        assert made.wanted
        assert as_label_set(write("again.yaml", labels_yaml(made).encode())) == made


@bounded
@given(data=files | cocos, name=st.sampled_from(["list.txt", "list.csv", "coco.json"]))
@example(data=b'"', name="list.csv")
@example(data=b'file_name\n"a\nb"\n', name="list.csv")
@example(data=b'{"images": [{"id": 1, "file_name": "\\ud800"}]}', name="coco.json")
def test_lists_of_images(write, data, name):
    with contextlib.suppress(Clip2SamError):
        source = find_source(write(name, data))
        assert len(source.keys) == len(source.ids) > 0
        for key in source.keys:
            with contextlib.suppress(Clip2SamError):
                load_image(source.read(key))


@bounded
@given(data=cocos)
@example(data=b'{"images": [[]], "annotations": [{"segmentation": [[]]}], "categories": {}}')
def test_coco_files_have_faults_and_no_exceptions(write, data):
    path = write("coco.json", data)
    faults = validate(path)
    assert all(fault.place and "\n" not in str(fault) for fault in faults)
    with contextlib.suppress(Clip2SamError):
        assert read_coco(path)
        assert faults == []
    validate(path, path)


KEYS = ("image_id", "category_id", "segmentation", "score")
RESULTS = [{key: row[key] for key in KEYS} for row in DOCUMENTS[0]["annotations"]]
results = (
    files
    | st.just(RESULTS).flatmap(changed).map(lambda value: json.dumps(value).encode())
    | damaged(json.dumps(RESULTS).encode())
)


@bounded
@given(data=results, dataset=st.just(json.dumps(DOCUMENTS[0]).encode()) | cocos)
@example(data=b'[{"segmentation": {"size": [1e999, 2], "counts": [[]]}}]', dataset=b"{}")
def test_results_files_have_faults_and_no_exceptions(write, data, dataset):
    path, against = write("results.json", data), write("coco.json", dataset)
    assert validate(write("valid.json", json.dumps(RESULTS).encode())) == []
    alone, beside = validate(path), validate(path, against)
    assert all(fault.place and "\n" not in str(fault) for fault in [*alone, *beside])
    if data.lstrip()[:1] == b"[":  # results: the dataset can only add faults
        assert len(beside) >= len(alone)


@bounded
@given(value=st.sampled_from(DOCUMENTS).flatmap(changed) | values)
def test_coco_in_memory_has_faults_and_no_exceptions(value):
    if isinstance(value, dict | list):
        validate(value)
        validate([value], value if isinstance(value, dict) else None)
        validate(list(value.values()) if isinstance(value, dict) else value)


def encoded(kind: str, mode: str) -> bytes:
    rng = np.random.default_rng(0)
    made = PILImage.fromarray(rng.integers(0, 255, (9, 11, 3), np.uint8)).convert(mode)
    data = io.BytesIO()
    made.save(data, kind)
    return data.getvalue()


KINDS = (
    ("PNG", "RGBA"),
    ("PNG", "P"),
    ("JPEG", "CMYK"),
    ("GIF", "P"),
    ("WEBP", "RGB"),
    ("TIFF", "I;16"),
    ("TIFF", "F"),
    ("BMP", "1"),
    ("PPM", "L"),
)
IMAGES = {f"{kind} {mode}": encoded(kind, mode) for kind, mode in KINDS}


@settings(bounded, max_examples=200)
@given(data=st.binary(max_size=40) | st.sampled_from(list(IMAGES.values())).flatmap(damaged))
def test_image_files(data):
    with contextlib.suppress(Clip2SamError):
        image = load_image(data, max_pixels=10_000)
        assert image.pixels.dtype == np.uint8
        assert image.pixels.shape == (*image.size, 3)
