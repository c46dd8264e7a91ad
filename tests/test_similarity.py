"""Feature surgery, presence, and the grid."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip2sam.similarity import (
    beats_distractors,
    feature_surgery,
    is_present,
    min_max,
    similarity_maps,
    usable,
)
from clip2sam.types import SimilarityMaps


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1
    )


def published(tokens, text):
    """The paper's way: the (tokens, labels, channels) tensor of one picture, in full."""
    weights = (2 * tokens[:1] @ text.T).softmax(-1)
    weights = weights / weights.mean(-1, keepdim=True)
    features = tokens[:, None] * text[None] * weights[..., None]
    return (features - features.mean(dim=1, keepdim=True)).sum(-1)


def test_it_is_the_papers_tensor_for_every_picture_of_a_batch():
    tokens, text = unit(3, 17, 8, dtype=torch.float64), unit(5, 8, seed=1, dtype=torch.float64)
    expected = torch.stack([published(picture, text) for picture in tokens])
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


def test_presence_is_the_highest_patch_score():
    scores = torch.tensor([[9.0, 9.0], [0.1, 0.4], [0.2, -0.3], [0.0, 0.0], [-1.0, 0.3]])
    maps = similarity_maps(scores)
    assert maps.raw.shape == (2, 2, 2)
    torch.testing.assert_close(
        maps.presence, torch.tensor([0.2, 0.4])
    )  # the CLS token's 9 is no place
    torch.testing.assert_close(maps.raw[0], torch.tensor([[0.1, 0.2], [0.0, -1.0]]))


def test_constant_and_broken_maps_are_not_usable():
    maps = torch.zeros(4, 2, 2)
    maps[1, 0, 0] = 1.0
    maps[2, 0, 0] = torch.nan
    maps[3, 0, 0] = torch.inf
    assert usable(maps).tolist() == [False, True, False, False]
    assert min_max(maps)[0].isnan().all()


def decide(raw, thresholds, distractors):
    raw = torch.tensor(raw)[:, None]
    maps = SimilarityMaps(raw=raw, presence=raw.amax(dim=(-2, -1)))
    limits = None if thresholds is None else torch.tensor(thresholds)
    return is_present(maps, limits, torch.tensor(distractors)).tolist()


def test_labels_below_their_own_threshold_are_absent():
    raw = [[0.3, 0.0], [0.3, 0.0], [0.1, 0.0]]
    assert decide(raw, [0.1, 0.5, 0.1], [False] * 3) == [True, False, True]
    assert decide(raw, None, [False] * 3) == [True] * 3


@pytest.mark.parametrize(("rival", "survives"), [(0.2, True), (0.3, True), (0.4, False)])
def test_distractors_compete_at_the_peak_and_are_never_present(rival, survives):
    raw = [[0.3, 0.0], [rival, 0.9]]
    assert decide(raw, [0.1, 0.1], [False, True]) == [survives, False]
    assert (
        beats_distractors(torch.tensor(raw)[:, None], torch.tensor([False, True])).tolist()[0]
        is survives
    )
