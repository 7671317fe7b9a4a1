"""The rows of SGLang's head that are sampled, kept where a captured graph finds them."""

import pytest
import torch
from torch import nn

from tokenlens.sglang.head import HeadBuffer, scale_of

HIDDEN = 8


class Processor:
    """What prunes rows, as SGLang's: all rows, or those with input log-probabilities."""

    def _get_pruned_states(self, states, sampled=None):
        return states, None, None, sampled, None, []


def watched(max_rows=4):
    """A processor and what looks at it."""
    processor, head = Processor(), nn.Linear(HIDDEN, 20)
    head.embedding_dim = HIDDEN
    return processor, HeadBuffer(processor, head, torch.zeros(20, HIDDEN), max_rows)


def test_sampled_rows_are_copied_once_and_only_for_those_who_ask():
    processor, watch = watched()
    buffer = watch._rows
    processor._get_pruned_states(torch.ones(2, HIDDEN))
    assert not buffer.any()
    watch.arm(2)
    with pytest.raises(RuntimeError, match="got None rows at the model's head"):
        watch.rows()
    states = torch.arange(5.0)[:, None].expand(5, HIDDEN)
    found = processor._get_pruned_states(states, torch.tensor([1, 4]))
    assert found[0] is states
    # Another call of the same pass is not this step's.
    processor._get_pruned_states(torch.ones(2, HIDDEN))
    assert watch.rows()[:, 0].tolist() == [1.0, 4.0]
    assert watch.rows().data_ptr() == buffer.data_ptr()
    watch.arm(3)
    processor._get_pruned_states(states[:2])
    with pytest.raises(RuntimeError, match="got 2 rows"):
        watch.rows()
    assert watch.weight() is None


def test_a_capture_copies_whoever_asks(monkeypatch):
    """Nothing is known of requests when a graph is captured; its rows may be padding."""
    processor, watch = watched(max_rows=2)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    processor._get_pruned_states(torch.ones(4, HIDDEN))
    assert watch._rows.eq(1).all()
    # A replay runs no Python, and its rows are taken as they are.
    watch.arm(2)
    assert watch.rows().eq(1).all()


@pytest.mark.parametrize(
    ("family", "dtype", "scale"),
    [
        ("GemmaForCausalLM", torch.bfloat16, 10**0.5),
        ("Gemma2ForCausalLM", torch.bfloat16, 3.15625),
        ("Gemma2ForCausalLM", torch.float32, 10**0.5),
        ("MiniCPM3ForCausalLM", torch.float32, 12.0),
        ("Qwen3ForCausalLM", torch.float32, 1.0),
        ("Gemma9ForCausalLM", torch.float32, None),
    ],
)
def test_embeddings_that_are_scaled_behind_the_table(family, dtype, scale):
    model, table = type(family, (nn.Module,), {})(), nn.Embedding(4, 10, dtype=dtype)
    model.config = type("Config", (), {"hidden_size": 10, "scale_emb": 12})()
    found = scale_of(model, table)
    assert found is None if scale is None else found == pytest.approx(scale)
    table.embed_scale = 5.0
    assert scale_of(model, table) == 5.0
