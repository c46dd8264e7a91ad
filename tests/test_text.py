"""Text features: batches of texts, and text towers of another kind."""

import open_clip
import pytest
import torch

from clip2sam.clip import text
from clip2sam.clip.text import TEMPLATES, encode_prompts, encode_tokens
from clip2sam.kernels.device import TEXT_PROMPTS_PER_BATCH
from tests.models import small_clip


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_more_templates_than_a_batch_are_one_mean(monkeypatch, batch):
    """Each text counts the same, also in a last batch that is not full."""
    model, tokenizer = small_clip(), open_clip.SimpleTokenizer()
    templates = ("a {}.", "two {} at sea", "{}", "there is a {} in the scene.", "no {}")
    expected = encode_prompts(model, tokenizer, ["red kite", ""], templates)
    monkeypatch.setattr(text, "TEXT_PROMPTS_PER_BATCH", batch)
    ours = encode_prompts(model, tokenizer, ["red kite", ""], templates)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_one_prompts_templates_are_one_batch():
    """So what they share is computed once."""
    assert len(TEMPLATES) <= TEXT_PROMPTS_PER_BATCH


@torch.no_grad()
@pytest.mark.parametrize("kind", ["not causal", "read elsewhere"])
def test_a_text_tower_of_another_kind_runs_whole(kind):
    model = small_clip()
    tokens = open_clip.tokenize(["a photo of a dog.", "a photo of a cat."])
    causal = model.encode_text(tokens)
    if kind == "not causal":
        model.attn_mask = None
    else:
        model.text_pool_type = "first"
    assert not torch.allclose(model.encode_text(tokens), causal, atol=1e-2)
    assert torch.equal(encode_tokens(model, tokens), model.encode_text(tokens))
