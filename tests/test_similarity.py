"""Feature surgery, presence, and the grid."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip2sam.data.presence import is_present, recorded_presence
from clip2sam.similarity import (
    beaten_by_distractors,
    feature_surgery,
    min_max,
    score_maps,
    surgery_terms,
)


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1
    )


def published(tokens, text):
    """As in the paper: the (tokens, labels, channels) tensor of one image, in full."""
    weights = (2 * tokens[:1] @ text.T).softmax(-1)
    weights = weights / weights.mean(-1, keepdim=True)
    features = tokens[:, None] * text[None] * weights[..., None]
    return (features - features.mean(dim=1, keepdim=True)).sum(-1)


def test_it_is_the_papers_tensor_for_every_image_of_a_batch():
    tokens, text = unit(3, 17, 8, dtype=torch.float64), unit(5, 8, seed=1, dtype=torch.float64)
    expected = torch.stack([published(image, text) for image in tokens])
    torch.testing.assert_close(feature_surgery(tokens, text), expected, rtol=0, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(labels=st.integers(2, 12), seed=st.integers(0, 1000))
def test_permuting_labels_permutes_the_maps(labels, seed):
    tokens, text = unit(1, 10, 6, seed=seed), unit(labels, 6, seed=seed + 1)
    order = torch.randperm(labels, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        feature_surgery(tokens, text[order]), feature_surgery(tokens, text)[..., order]
    )


def test_a_label_alone_needs_the_empty_string():
    tokens, text, empty = unit(1, 10, 6), unit(1, 6, seed=1), unit(1, 6, seed=2)
    assert feature_surgery(tokens, text).abs().max() == 0
    torch.testing.assert_close(
        feature_surgery(tokens, text, empty)[0], tokens[0] @ (text - empty).T
    )


@pytest.mark.parametrize("labels", [1, 5])
def test_surgery_is_the_difference_of_its_terms(labels):
    tokens, text = unit(2, 10, 6), unit(labels, 6, seed=1)
    empty = unit(1, 6, seed=2) if labels == 1 else None
    terms = surgery_terms(tokens, text, empty)
    torch.testing.assert_close(
        terms.similarity - terms.redundant, feature_surgery(tokens, text, empty)
    )
    torch.testing.assert_close(terms.similarity, (tokens @ text.T) * terms.weights[:, None])
    torch.testing.assert_close(terms.weights.mean(dim=-1), torch.ones(2))


def test_1203_labels_on_1025_tokens_take_little_memory():
    tokens, text = unit(1, 1025, 512), unit(1203, 512, seed=1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        feature_surgery(tokens, text)
    allocated = [
        e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0
    ]
    assert sum(allocated) >= 1025 * 1203 * 4  # the profiler sees the result at least
    assert sum(allocated) <= 32 * 2**20  # even if nothing were given back


def test_maps_have_the_rows_and_columns_of_the_patches():
    """2 x 3 patches; the CLS token's 9 is at no place."""
    scores = torch.tensor([[9.0], [0.1], [0.2], [0.0], [-1.0], [0.3], [0.5]])[None]
    maps = score_maps(scores, 2, 3)
    torch.testing.assert_close(maps, torch.tensor([[[[0.1, 0.2, 0.0], [-1.0, 0.3, 0.5]]]]))


def test_constant_and_broken_maps_have_no_scale():
    maps = torch.zeros(4, 2, 2)
    maps[1, 0, 0] = 1.0
    maps[2, 0, 0] = torch.nan
    maps[3, 0, 0] = torch.inf
    scaled = min_max(maps)
    assert [bool(m.isnan().any()) for m in scaled] == [True, False, True, True]


NAN = float("nan")
DECISIONS = [
    # score, beaten, threshold, present
    (0.3, False, 0.1, True),
    (0.3, False, 0.5, False),
    (0.1, False, 0.1, True),  # at the threshold, in fp32
    (0.3, True, 0.1, False),
    (0.3, True, NAN, True),  # no threshold, no decision
    (-9.0, False, NAN, True),
    (NAN, False, 0.1, False),
    (NAN, False, NAN, False),
    (0.3, False, float("inf"), False),
]


@pytest.mark.parametrize("make", [torch.tensor, lambda x: np.array(x, np.float32)])
def test_the_decision_is_the_same_for_tensors_and_arrays(make):
    scores, _, thresholds = (make([row[i] for row in DECISIONS]) for i in range(3))
    beaten = make([float(row[1]) for row in DECISIONS]) > 0
    assert is_present(scores, beaten, thresholds).tolist() == [row[3] for row in DECISIONS]


def test_the_decision_on_records_is_taken_in_fp32():
    """0.1 in fp32 is above 0.1 in double precision: both sides are rounded."""
    assert recorded_presence((0.1, None, 0.2), (False, False, True), (0.1, 0.0, None)).tolist() == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("rival", "beaten"), [(0.2, False), (0.3, False), (0.4, True)])
def test_distractors_compete_at_the_labels_peak(rival, beaten):
    maps = torch.tensor([[[0.3, 0.0]], [[rival, 0.9]]])[None]
    found = beaten_by_distractors(maps, torch.tensor([False, True]))
    assert found.tolist() == [[beaten, False]]


def test_without_distractors_nobody_is_beaten():
    maps = torch.randn(2, 3, 4, 5)
    assert not beaten_by_distractors(maps, torch.zeros(3, dtype=torch.bool)).any()
