"""Records: numbers in float32's shortest form, rows that come back."""

import json

import numpy as np
import pytest

from clip2sam.data.records import (
    Annotation,
    ImageRecord,
    as_float32,
    record_from_row,
    record_to_row,
)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-8, 123456.789, -0.02])
def test_numbers_are_as_short_as_float32_allows(value):
    assert np.float32(as_float32(np.float32(value))) == np.float32(value)
    assert len(repr(as_float32(np.float32(value)))) <= 16
    assert as_float32(np.float32(0.1)) == 0.1


@pytest.mark.parametrize(
    "record",
    [
        ImageRecord(7, "a/b.png", state="failed", reason="it is cut", seconds={"decode": 0.5}),
        ImageRecord(
            9,
            "c.png",
            (3, 5),
            annotations=(
                Annotation("dog", {"size": [3, 5], "counts": "0@`"}, 0.25, ((1.5, 2.0, 0),)),
                Annotation("dog", {"size": [3, 5], "counts": "1@`"}, 0.5),
                Annotation("cat", {"size": [3, 5], "counts": "2@`"}, 0.75, ((0.5, 0.5, 1),)),
            ),
            presence=(None, 0.3, -0.1),
            beaten=(False, True, True),
            seconds={"decode": 0.5, "model": 2.0, "masks": 0.125},
        ),
    ],
)
def test_a_row_comes_back_through_json_as_the_same_record(record):
    classes = ("dog", "cat", "cow")
    row = record_to_row(record, classes)
    assert list(row)[:2] == ["image_id", "state"]
    assert record_from_row(json.loads(json.dumps(row)), classes) == record
