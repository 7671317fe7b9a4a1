"""Every architecture in Hugging Face: what was fed is what the traces say.

A selection here; all of them with ``TOKENLENS_FAMILIES=all`` (``make test-families``).
"""

import os

import family_checks
import family_table
import pytest
import sight_table
import torch
import transformers
from family_models import START, TEXT, build, tokenizer
from family_sight import CLASSES
from transformers import LogitsProcessor

from tokenlens import SpecError
from tokenlens.hf import generate_kwargs, traces, verify_trace
from tokenlens.hf.replay import Replay
from tokenlens.hf.verify import TOLERANCE
from tokenlens.sglang import refusals as sglang
from tokenlens.vllm import refusals as vllm

SELECTION = (
    *("smollm3", "olmo2", "granite", "gemma2", "gemma3n_text", "gpt_oss", "glm4_moe"),
    *("deepseek_v3", "qwen3_5_text", "falcon_h1", "mamba2", "gpt_neox"),
)
"""One of every kind: tied and not, scaled, multiplied, two tables, experts, latent attention, gated
delta rule, attention beside a recurrence, no attention at all, learned positions."""

NAMES = TEXT if os.environ.get("TOKENLENS_FAMILIES") == "all" else SELECTION


@pytest.mark.parametrize("name", NAMES)
def test_what_was_fed_is_what_the_traces_say(name):
    model = build(name)
    found = family_checks.replayed(model)
    for row, one in found.items():
        assert one.holds, (row, one)
        assert one.tells, (row, one)
        assert one.steps == family_checks.STEPS
    assert found["soft"].mixtures > 3
    assert found["gumbel"].mixtures > 3
    assert found["plain"].mixtures == 0
    assert family_checks.static(model) in ("exact", "refused", "stock fails")
    named = family_checks.by_name(model)
    assert family_checks.wrong_by_name(named) is None
    assert len(named["said"]) == 1, named["said"]
    with pytest.raises(SpecError, match="phase: none"):
        generate_kwargs(model, tokenizer(markers=False), family_checks.NAMED)


def test_the_table_is_what_the_suite_found():
    rows = family_table.stored()
    assert set(rows) == set(TEXT)
    assert family_table.PAGE.read_text() == family_table.page(rows)
    for name, row in rows.items():
        assert row["traced"] <= TOLERANCE < row["tokens"], name
        assert row["static"] != "WRONG", name


def test_lists_are_of_classes_that_were_right_on_all_runners_of_an_engine():
    assert set(sight_table.stored()["rows"]) == {sight.model for sight in CLASSES.values()}
    assert sight_table.right("vllm") == vllm.MULTIMODAL
    assert sight_table.right("sglang") == sglang.MULTIMODAL


class Wrote(LogitsProcessor):
    """Has a token written at some places."""

    def __init__(self, token, places):
        self.token, self.places = token, places

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] in self.places:
            scores = scores.clone()
            scores[:, self.token] = scores.amax() + 3
        return scores


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_a_token_of_images_that_was_written_is_no_image(name, monkeypatch):
    sight = CLASSES[name]
    ids = {role: 300 + place for place, role in enumerate(sight.tokens)}
    torch.manual_seed(sight.seed)
    model = getattr(transformers, sight.model)(sight.config(ids)).eval()
    image = ids["image_token"]
    prompt = torch.tensor([[10, 11, *[image] * 4, 13, START, 14]])
    seen = {"pixel_values": torch.randn(1, 3, 32, 32)}
    if name.startswith("qwen"):
        # 4 by 4 patches of 14 by 14 pixels, twice
        seen = {
            "pixel_values": torch.randn(16, 3 * 2 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (prompt == image).long(),
        }
    forced = [Wrote(image, {prompt.shape[1] + place for place in (2, 3, 8)})]
    spec = {
        "methods": [{"method": "soft_thinking"}],
        "phase": {"markers": "none", "end_after": 6},
        "trace": {"level": "full"},
    }
    kwargs = generate_kwargs(model, None, spec)
    kwargs["logits_processor"].insert(0, forced[0])
    model.generate(
        input_ids=prompt, **seen, **kwargs, max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    (trace,) = traces(kwargs)
    assert [step.token for step in trace.steps].count(image) >= 3
    kinds = seen.get("mm_token_type_ids")
    if kinds is not None:
        seen["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, len(trace.steps) - 1))
    found = verify_trace(model, None, trace, inputs=seen, logits_processor=forced)
    assert found.holds, found
    assert found.tells
    # Otherwise the forward pass would look for more of the image than there is.
    monkeypatch.setattr(Replay, "_placeholders", lambda *_: frozenset())
    with pytest.raises(ValueError, match="do not match"):
        verify_trace(model, None, trace, inputs=seen, logits_processor=forced)
