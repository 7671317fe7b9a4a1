"""Figures of traces, and where two part."""

from itertools import pairwise

import pytest
from trace_samples import recording, trace

from tokenlens.trace import TraceCounts, differences, summarize
from tokenlens.trace.compare import csv_rows


def test_summary_counts_switches():
    found = summarize(trace(60))
    steps = trace(60).steps
    assert found.tokens == found.steps_kept == 60
    assert found.mode_changes == sum(a.latent != b.latent for a, b in pairwise(steps)) > 5
    assert found.mean_top_weight == 0.7


def test_a_trace_does_not_differ_from_itself():
    assert differences(trace(60), trace(60, engine="vllm")) == []


def test_differences_name_position_and_fields():
    left, right = trace(60), trace(59)
    changed = list(right.steps)
    changed[4] = changed[4].model_copy(update={"entropy": changed[4].entropy + 0.01})
    changed[6] = changed[6].model_copy(update={"entries": ((1, 1.0),), "edits": None})
    found = differences(left, right.model_copy(update={"steps": tuple(changed)}))
    assert [(d.position, d.fields) for d in found] == [
        (14, ("entropy",)),
        (16, ("entries", "edits")),
        (69, ("missing",)),
    ]
    assert differences(left, right.model_copy(update={"steps": tuple(changed)}), 0.1)[0][0] == 16


def test_rows_of_a_table():
    header, *rows = csv_rows(recording(30))
    assert len(rows) == 30
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][header.index("text")] == "wait"


def test_the_old_name_of_a_gate_s_switches_is_read_and_warns():
    totals = dict.fromkeys(("tokens", "thinking_tokens", "latent_steps", "forced_steps"), 2)
    old = TraceCounts.model_validate({**totals, "invalid_steps": 0, "cold_stops": 0, "switches": 3})
    assert (old.gate_switches, old.mode_changes) == (3, 0)
    with pytest.warns(DeprecationWarning, match="gate_switches"):
        assert old.switches == 3
