"""Traces in streamed text: only the chunk that ends a choice is another one."""

import json

import pytest

from tokenlens.serving.streams import with_traces


def put(content, choice, trace):
    choice["trace"] = trace


def chunk(**choice):
    return "data: " + json.dumps({"id": "x", "choices": [choice]}) + "\n\n"


@pytest.mark.parametrize(
    "text",
    [
        "data: [DONE]\n\n",
        "event: ping\n\n",
        "",
        chunk(index=0, text="a", finish_reason=None),
        chunk(index=1, text="a", finish_reason="stop"),
        'data: {"error":{"message":"no"}}\n\n',
        # As no serialiser of ours would write it
        'data:   {"choices" : []}\n\n',
    ],
)
def test_other_chunks_are_left_alone(text):
    found = {0: "trace"}
    assert with_traces(text, found, put) == text
    assert found == {0: "trace"}


@pytest.mark.parametrize("reason", ["stop", "length", ""])
def test_a_choice_that_ends_has_its_trace(reason):
    found = {0: "trüb", 1: "other"}
    text = with_traces(chunk(index=0, text="schön", finish_reason=reason), found, put)
    assert text.startswith("data: {")
    assert text.endswith("\n\n")
    content = json.loads(text.removeprefix("data: "))
    assert content["choices"] == [
        {"index": 0, "text": "schön", "finish_reason": reason, "trace": "trüb"}
    ]
    assert "schön" in text
    assert found == {1: "other"}
