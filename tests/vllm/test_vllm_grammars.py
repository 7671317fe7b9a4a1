"""Where vLLM's grammars begin, by its own parsers and its own rule, and where thinking is over.

The scheduler around the rule is a fake: it hands on the tokens that were sampled, one a step.
"""

from random import Random
from types import SimpleNamespace

import json_reasoner as reasoner
import pytest
import torch
from built_in import Core
from built_tokenizers import byte_level
from lent_vectors import Lent
from vllm_support import needs_vllm

from tokenlens.errors import SpecError
from tokenlens.serving import structure
from tokenlens.serving.binding import Binder
from tokenlens.spec import parse_spec
from tokenlens.spec.finding import EngineMarkers

pytestmark = needs_vllm

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>")
QWEN = byte_level(added=MARKERS)
PIECES = (*MARKERS[:4], *"ab1\n", "wait")

PARSERS = {
    "qwen3": True,
    "deepseek_r1": False,
    "kimi_k2": False,
    "glm45": True,
    "nemotron_v3": True,
    "ernie45": False,
    "step3p5": True,
}
"""Parsers that say which tokens end thinking, and whether the start of a tool call does."""

PHASES = {
    "auto": "auto",
    "family": "qwen",
    "text": {"think_start": "<think>", "think_end": "</think>"},
    "another": {"think_end": "wait"},
    "all of it": {"think_end": "wait", "tool_start": "<tool_call>"},
    "two": {"think_end": ["</think>", "wait"]},
    "ids": {"think_end": [QWEN.convert_tokens_to_ids("</think>")]},
    "longer": {"think_end": [[97, QWEN.convert_tokens_to_ids("</think>")]]},
    "call": {"think_end": "<tool_call>", "tool_start": "</think>"},
    "other call": {"tool_start": "wait"},
    "long start": {"think_start": "wait"},
    "start of it": {"think_start": [[97, QWEN.convert_tokens_to_ids("<tool_call>")]]},
}
ACTING = {
    **{name: methods for name, methods in reasoner.SPECS.items() if methods and name != "edits"},
    **reasoner.FORBIDDEN,
    "a text before": [{"method": "answer_now", "after": 2, "text": "so</think>"}],
    "a call": [{"method": "answer_now", "after": 2, "text": "<tool_call>"}],
    "budget": [{"method": "thinking_budget", "budget": 3}],
    "placeholders": [{"method": "coconut"}],
    "tripwire": [{"method": "tripwire", "entropy": 0.0}],
    "tripwire before": [{"method": "tripwire", "max_probability": 0.5, "active": "thinking"}],
}


def engine(parser, tokenizer=QWEN):
    """What our front end knows of an engine with a parser."""
    from tokenlens.vllm.grammars import GrammarsOf

    structured = SimpleNamespace(
        reasoning_parser=parser, enable_in_reasoning=False, reasoning_parser_plugin=""
    )
    return GrammarsOf(SimpleNamespace(structured_outputs_config=structured), tokenizer)


def bound(facts, parser, methods, phase, known=True):
    """A request that is held to a grammar, as a front end binds it."""
    binder = Binder(
        QWEN,
        len(QWEN),
        stop_ids=lambda params: (QWEN.eos_token_id,),
        engine=EngineMarkers(parser),
        held=lambda params: True,
        grammars=facts if known else structure.Grammars(),
    )
    return binder.prepare(parse_spec({"methods": methods, "phase": phase, "seed": 1}), None)


class Scheduler:
    """vLLM's rule for one request, with one of its parsers; what the grammar was given."""

    def __init__(self, parser, prompt):
        from vllm.v1.structured_output import StructuredOutputManager

        self.manager = object.__new__(StructuredOutputManager)
        self.manager.enable_in_reasoning = False
        self.manager._get_reasoner = lambda request: parser
        self.fed = []
        grammar = SimpleNamespace(accept_tokens=lambda _, tokens: self.fed.extend(tokens) or True)
        held = SimpleNamespace(reasoning_ended=None, grammar=grammar)
        self.request = SimpleNamespace(
            request_id="1",
            prompt_token_ids=prompt,
            all_token_ids=list(prompt),
            use_structured_output=True,
            structured_output_request=held,
        )
        self.manager._get_constraint_bounds(self.request, [])

    def take(self, token):
        """Give it a token that was sampled; whether the grammar was given it."""
        before = len(self.fed)
        self.request.all_token_ids.append(token)
        assert self.manager.accept_tokens(self.request, [token])
        return len(self.fed) > before

    @property
    def holds(self):
        return bool(self.request.structured_output_request.reasoning_ended)


def run(request, parser, prompt, pieces):
    """Decode with a model that wants to write certain pieces.

    Yields, of each step, whether the grammar held it, what the step was, whether its token was
    another than the model's, and whether the grammar was given it.
    """
    core = Core(max_slots=1, vocab_size=len(QWEN), engine_vectors=Lent(1, len(QWEN)))
    ids = QWEN.encode(prompt, add_special_tokens=False)
    core.add(0, request, ids)
    scheduler, slots = Scheduler(parser, ids), torch.tensor([0])
    for piece in pieces:
        for token in QWEN.encode(piece, add_special_tokens=False):
            logits = torch.zeros(1, len(QWEN))
            logits[0, token] = 50.0
            held = scheduler.holds
            sampled = core.step(logits, slots).argmax(dim=1)
            step = core.commit(sampled, slots)
            yield held, step, int(sampled) != token, scheduler.take(int(sampled))


def admitted(request, facts, own, prompt):
    """Whether the front end lets it in."""
    try:
        why = structure.conflict(request, facts)
    except SpecError as error:
        why = str(error)
    ids = QWEN.encode(prompt, add_special_tokens=False)
    if why is None and structure.begins_early(request, ids):
        why = own.hold_from_start(ids) or None
    return why is None


def violations(steps, exact):
    """Steps in which something of ours met the grammar."""
    found = []
    for held, step, changed, given in steps:
        answer = int(step.phase) == 2
        if (held and bool(step.forced)) or ((held or given) and changed):
            found.append("forced")
        if held and (bool(step.latent) or not answer):
            found.append("thinks")
        if exact and answer and not held:
            found.append("over too soon")
    return found


PROMPTS = ("a", "a<think>", "a<think>b", "a<think>b</think>\n\n", "a<think>b</think>c")


@pytest.mark.parametrize("parser", sorted(PARSERS))
def test_nothing_of_ours_meets_a_grammar(parser):
    own, random, tried = engine(parser), Random(parser), 0
    for _ in range(60):
        methods, phase = random.choice(sorted(ACTING)), random.choice(sorted(PHASES))
        prompt = random.choice(PROMPTS)
        pieces = random.choices(PIECES, k=random.randint(4, 24))
        try:
            request = bound(own.facts, parser, ACTING[methods], PHASES[phase])
        except SpecError:
            continue  # refused without a grammar, too
        if admitted(request, own.facts, own, prompt):
            tried += 1
            exact = phase in ("auto", "family", "ids") and prompt != PROMPTS[3]
            found = violations(run(request, own._own, prompt, pieces), exact)
            assert found == [], (methods, phase, prompt, pieces)
    assert tried > 10


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_what_a_parser_says(name):
    own = engine(name)
    end, call = (QWEN.convert_tokens_to_ids(text) for text in ("</think>", "<tool_call>"))
    assert own.facts.ends == ({end, call} if PARSERS[name] else {end})
    assert own.facts.spoken == ({call} if PARSERS[name] else set())
    for methods in ("soft", "soft, ended", "no thinking", "s1", "a text before"):
        request = bound(own.facts, name, ACTING[methods], "auto")
        assert admitted(request, own.facts, own, "a<think>"), methods
        assert request.spec.phase.think_end == "</think>"
        assert request.spec.phase.tool_start == ("<tool_call>" if PARSERS[name] else None)
    for methods in ("a call", *reasoner.FORBIDDEN):
        request = bound(own.facts, name, ACTING[methods], "auto")
        allowed = methods == "a call" and not PARSERS[name]
        assert admitted(request, own.facts, own, "a<think>") is allowed, methods


def test_a_vocabulary_whose_call_is_no_added_token():
    added = ("<think>", "</think>", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_level(words=("<tool_call>",), added=added)
    call = tokenizer.convert_tokens_to_ids("<tool_call>")
    facts = engine("qwen3", tokenizer).facts
    assert facts.spoken == {call}
    binder = Binder(tokenizer, len(tokenizer), held=lambda params: True, grammars=facts)
    request = binder.prepare(parse_spec({"methods": [reasoner.SOFT], "seed": 1}), None)
    assert request.spec.phase.tool_start == (call,)
    assert structure.conflict(request, facts) is None


@pytest.mark.parametrize(
    ("methods", "phase", "written", "met"),
    [
        # Thinking is over for the parser, and not for the request.
        ("soft, ended", PHASES["all of it"], "b</think>", "thinks"),
        # It is forced where the parser's thinking has been ended, or begins the answer.
        ("ended", PHASES["all of it"], "b</think>", "forced"),
        ("soft, ended", PHASES["call"], "b", "forced"),
        ("a call", "auto", "b", "forced"),
        # As it was before parsers were asked for what else ends thinking.
        ("soft, ended", {"tool_start": "wait"}, "b<tool_call>", "thinks"),
    ],
)
def test_with_the_rule_switched_off_they_meet(methods, phase, written, met):
    own = engine("qwen3")
    request = bound(own.facts, "qwen3", ACTING[methods], phase)
    assert not admitted(request, own.facts, own, "a<think>")
    assert met in violations(run(request, own._own, "a<think>", [written, "b" * 20]), False)
