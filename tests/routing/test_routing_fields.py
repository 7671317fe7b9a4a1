"""Every field of a request is honoured, changes nothing, or is a 400 that names it."""

import random
import string

import pytest

from tokenlens.routing import fields
from tokenlens.routing.protocol import ChatRequest, CompletionRequest, RequestError, parse

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}
VALUES = [True, False, 0, 1, 2, -1, 0.5, "", "x", [], ["x"], [{}], {}, {"x": 1}]


@pytest.mark.parametrize(("model", "base"), [(ChatRequest, CHAT), (CompletionRequest, TEXT)])
def test_no_field_vanishes(model, base):
    """Names of all dialects and random ones, with any value: the rule holds for each."""
    generator = random.Random(7)
    made = ["".join(generator.choices(string.ascii_lowercase + "_", k=9)) for _ in range(30)]
    others = ["guided_regex", "guided_json", "structured_outputs", "regex", "logits_processors",
              "chat_template", "vllm_xargs2", "prompt_logprobs", "cache_salt", "rid", "n_predict",
              "__proto__", "Temperature", "stop_regex", "custom_logit_processor", "lora_path",
              "reasoning", "thinking", "messages2", "dry_multiplier", "truncate_prompt_tokens",
              "prompt", "messages", "chat_template_kwargs"]  # fmt: skip
    for name in [*fields.DEFAULTS, *others, *made]:
        if name in model.model_fields:
            continue
        for value in VALUES:
            harmless = any(fields.same(value, one) for one in fields.DEFAULTS.get(name, ()))
            if harmless:
                parse(model, {**base, name: value})
                continue
            with pytest.raises(RequestError, match=f"^{name}: got .*allowed: "):
                parse(model, {**base, name: value})
        parse(model, {**base, name: None})


def test_what_clients_send_for_nothing_is_nothing():
    parts = [{"type": "text", "text": "x", "annotations": None}]
    body = parse(ChatRequest, {
        "messages": [{"role": "user", "content": parts}], "add_special_tokens": False,
        "stream_options": {"include_usage": None}, "detokenize": True, "dry_multiplier": 0.0,
    })  # fmt: skip
    assert body.messages[0].plain() == {"role": "user", "content": "x"}
    assert not body.stream_options.include_usage
    with pytest.raises(RequestError, match="add_special_tokens"):
        parse(ChatRequest, {**CHAT, "add_special_tokens": True})
    many = {f"x{i}": None for i in range(17)}
    with pytest.raises(RequestError, match=r"messages\.0\.content\.0\.x0"):
        parse(ChatRequest, {"messages": [{"role": "user", "content": [{**parts[0], **many}]}]})


def test_numbers_and_switches_are_not_confused():
    for name, value in (("n", True), ("presence_penalty", False), ("ignore_eos", 0)):
        with pytest.raises(RequestError, match=name):
            parse(ChatRequest, {**CHAT, name: value})
    parse(ChatRequest, {**CHAT, "presence_penalty": 0.0, "n": 1.0})


def test_logprobs_of_zero_ask_for_the_text_s_own():
    parse(ChatRequest, {**CHAT, "logprobs": False})
    for value in (0, False, 1, True):
        with pytest.raises(RequestError, match="logprobs"):
            parse(CompletionRequest, {**TEXT, "logprobs": value})


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"stream_options": {"include_usage": True, "other": 1}}, "stream_options.other"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream_options": {"continuous_usage_stats": True}}, "continuous_usage_stats"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]},
         "messages.0.content.0.y"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"temperature": float("inf")}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_fields_inside_of_fields_are_named(body, word):
    with pytest.raises(RequestError) as caught:
        parse(ChatRequest, {**CHAT, **body})
    assert word in str(caught.value), str(caught.value)


def test_parts_of_text_are_one_text():
    parts = [{"type": "text", "text": "make 6"}, {"type": "text", "text": "using 4"}]
    body = parse(ChatRequest, {"messages": [{"role": "user", "content": parts, "name": None}]})
    assert body.messages[0].plain() == {"role": "user", "content": "make 6\nusing 4"}


def test_a_list_of_one_prompt_is_a_prompt_and_two_are_not():
    assert parse(CompletionRequest, {"prompt": ["hi"]}).prompt == "hi"
    assert parse(CompletionRequest, {"prompt": [[1, 2]]}).prompt == [1, 2]
    assert parse(CompletionRequest, {"prompt": [1]}).prompt == [1]
    for prompt in (["a", "b"], [[1], [2]], [], "", [1, "a"], [True], [1.5], [-1], 5):
        with pytest.raises(RequestError, match="prompt"):
            parse(CompletionRequest, {"prompt": prompt})


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, "x" * 50_000: "y" * 50_000},
        {**CHAT, **{f"field{i}": i for i in range(3000)}},
        {**CHAT, "stop": ["y" * 1000] * 5000},
        {"messages": [{"role": "wizard" * 10_000}] * 4000},
        {"messages": [{"role": "user", "content": [{"type": "z" * 9000}] * 1000}]},
        {**CHAT, "stream_options": {f"o{i}": 1 for i in range(3000)}},
        {**CHAT, "stream_options": {"k" * 50_000: 1}},
        {**CHAT, "temperature": "t" * 50_000},
    ],
)
def test_an_error_is_short_whatever_was_sent(body):
    with pytest.raises(RequestError) as caught:
        parse(ChatRequest, body)
    assert len(str(caught.value)) < 4000


def test_what_is_left_open_stays_open():
    how = parse(ChatRequest, CHAT).sampling()
    assert (how.temperature, how.top_p, how.top_k) == (None, None, None)
    how = parse(ChatRequest, {**CHAT, "temperature": 0.5, "top_k": -1, "top_p": 0.9}).sampling()
    assert (how.temperature, how.top_p, how.top_k) == (0.5, 0.9, 0)
