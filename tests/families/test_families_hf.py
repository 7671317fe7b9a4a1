"""Every architecture in Hugging Face: what was fed is what the traces say.

A selection here; all of them with ``TOKENLENS_FAMILIES=all`` (``make test-families``).
"""

import os

import family_checks
import family_table
import pytest
import sight_table
from family_models import TEXT, build
from family_sight import CLASSES

from tokenlens.hf.verify import TOLERANCE
from tokenlens.vllm.refusals import MULTIMODAL

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


def test_the_table_is_what_the_suite_found():
    rows = family_table.stored()
    assert set(rows) == set(TEXT)
    assert family_table.PAGE.read_text() == family_table.page(rows)
    for name, row in rows.items():
        assert row["traced"] <= TOLERANCE < row["tokens"], name
        assert row["static"] != "WRONG", name


def test_vllms_list_is_of_classes_that_were_right_on_both_runners():
    rows = sight_table.stored()["rows"]
    assert set(rows) == {sight.model for sight in CLASSES.values()}
    assert sight_table.right(rows) == MULTIMODAL
