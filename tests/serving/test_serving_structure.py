"""Which specs go beside a grammar, and which do not, on the model of the server's tests."""

import json

import json_reasoner as reasoner
import pytest
import transformers

from tokenlens.errors import SpecError
from tokenlens.serving import structure
from tokenlens.serving.binding import Binder
from tokenlens.spec import parse_spec

END, OTHER = 4, 30
QWEN = structure.Grammars(frozenset([END]))


@pytest.fixture(scope="module")
def binder():
    """Of the tiny reasoner; every request of it is held to a grammar."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(reasoner.MODEL)
    return Binder(tokenizer, 128, held=lambda params: True)


def bound(binder, methods, **spec):
    return binder.prepare(parse_spec({"methods": methods or [], **spec}), None)


@pytest.mark.parametrize("name", [name for name, methods in reasoner.SPECS.items() if methods])
def test_what_ends_where_the_grammar_begins(binder, name):
    request = bound(binder, reasoner.SPECS[name])
    assert not request.spec.phase.reopens
    assert structure.conflict(request, QWEN) is None
    # Methods that only edit logits can be beside any grammar.
    decides = name != "edits"
    why = structure.conflict(request, structure.Grammars())
    assert bool(why) is decides
    if decides:
        assert "--reasoning-parser" in why


@pytest.mark.parametrize("field", reasoner.FORBIDDEN)
def test_a_text_behind_the_end_is_named(binder, field):
    request = bound(binder, reasoner.FORBIDDEN[field])
    with pytest.raises(SpecError) as caught:
        structure.conflict(request, QWEN)
    assert caught.value.problems[0].field == field


@pytest.mark.parametrize(
    ("ends", "phase"),
    [
        ([OTHER], "auto"),
        ([END, OTHER], "auto"),
        ([END], {"think_end": "wait"}),
        ([END], {"think_end": ["</think>", "wait"]}),
        ([END], {"markers": "none"}),
    ],
)
def test_the_parser_and_the_request_end_thinking_at_the_same_tokens(binder, ends, phase):
    request = bound(binder, [reasoner.SOFT], phase=phase)
    why = structure.conflict(request, structure.Grammars(frozenset(ends)))
    assert str(sorted(ends)) in why
    assert "phase.think_end" in why


def test_where_the_first_token_is_held(binder):
    tokenizer = binder.tokenizer
    chat = [{"role": "user", "content": reasoner.QUESTIONS[0]}]
    for thinks in (True, False):
        text = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, enable_thinking=thinks
        )
        prompt = tokenizer.encode(text)
        assert structure.begins_early(bound(binder, [reasoner.SOFT]), prompt) is thinks
        assert structure.begins_early(bound(binder, [reasoner.ENDED]), prompt) is thinks
        assert not structure.begins_early(bound(binder, reasoner.SPECS["edits"]), prompt)


def test_an_answer_that_would_be_aborted(binder):
    binder = Binder(binder.tokenizer, 128, stop_ids=lambda params: (2,), held=lambda params: True)
    request = bound(binder, [{**reasoner.SOFT, "profile": "published"}])
    with pytest.raises(SpecError, match=r"quirks\.abort_answer_on_low_entropy"):
        structure.conflict(request, QWEN)
    tripped = {"method": "tripwire", "entropy": 1.0}
    with pytest.raises(SpecError, match=r"tripwire\.active: got 'output'"):
        structure.conflict(bound(binder, [tripped]), QWEN)
    assert structure.conflict(bound(binder, [{**tripped, "active": "thinking"}]), QWEN) is None
    # It decides a token, without a sequence of them.
    assert "--reasoning-parser" in structure.conflict(bound(binder, [tripped]), structure.UNKNOWN)
    control = {"method": "swi_reasoning", "switch_control": {"after": 2, "terminate": "</think>"}}
    with pytest.raises(SpecError, match=r"swi_reasoning\.switch_control"):
        structure.conflict(bound(binder, [control]), QWEN)


def test_what_the_parser_says_is_carried_to_the_worker(binder):
    from tokenlens.serving.arguments import FOUND_KEY, PHASE_KEY

    call = structure.Grammars(frozenset([END, OTHER]), frozenset([OTHER]))
    front = Binder(binder.tokenizer, 128, held=lambda params: True, grammars=call)
    spec = {"methods": [reasoner.SOFT, reasoner.ENDED], "seed": 1}
    request = front.prepare(parse_spec(spec), None)
    assert request.spec.phase.tool_start == (OTHER,)
    assert structure.conflict(request, call) is None
    sent = front.found({"tokenlens": json.dumps(spec)}, request)
    assert FOUND_KEY in sent or PHASE_KEY in sent
    worker = Binder(
        binder.tokenizer, 128, arguments=lambda params: params, held=lambda params: True
    )
    assert worker(sent).markers.marks == request.markers.marks
    assert worker(sent).spec == request.spec
