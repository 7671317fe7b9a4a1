"""Beside a grammar: what is sampled behind the thinking is what the grammar allows, always."""

import sys
from pathlib import Path

import json_reasoner as reasoner
import pytest
import torch
import transformers
from built_in import Core
from lent_vectors import Lent

from tokenlens.core import pipeline
from tokenlens.serving.binding import Binder
from tokenlens.spec import parse_spec

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import conformance_table as table  # after the path

EOS, START, END, VOCABULARY = 2, 3, 4, 128
METHODS = {
    **table.METHODS,
    **table.WORD_METHODS,
    **{one.name: one.methods for one in table.SCENARIOS if one.methods},
    **{name: methods for name, methods in reasoner.SPECS.items() if methods},
}


@pytest.fixture(scope="module")
def tokenizer():
    """The tiny reasoner's."""
    return transformers.AutoTokenizer.from_pretrained(reasoner.MODEL)


def decode(core, allowed, generator):
    """Tokens behind the first end of thinking, all of them as a grammar allows."""
    slots, ended, found = torch.tensor([0]), False, []
    for step in range(60):
        logits = 4 * torch.randn(1, VOCABULARY, generator=generator)
        if ended:
            logits[:, ~allowed] = -torch.inf
        elif step > 30:
            logits[:, END] = 60.0  # unless it was ended before
        edited = core.step(logits, slots)
        sampled = torch.multinomial(edited.softmax(dim=1), 1, generator=generator)[:, 0]
        core.commit(sampled, slots)
        if ended:
            assert edited[:, ~allowed].eq(-torch.inf).all()
            found.append(int(sampled))
        ended = ended or int(sampled) == END
        if int(sampled) == EOS:
            break  # whatever it was, the request is over
    return found


def answers(tokenizer, name):
    """What a request with these methods writes behind its thinking."""
    binder = Binder(tokenizer, VOCABULARY, stop_ids=lambda params: (EOS,), held=lambda params: True)
    request = binder.prepare(parse_spec({"methods": METHODS[name], "seed": 1}), None)
    generator = torch.Generator().manual_seed(7)
    found = []
    for opened in (True, False):
        core = Core(max_slots=1, vocab_size=VOCABULARY, engine_vectors=Lent(1, VOCABULARY))
        core.add(0, request, [20, START] if opened else [20])
        # What begins thinking, too: it must not be begun again.
        allowed = torch.rand(VOCABULARY, generator=generator) < 0.2
        allowed[START], allowed[END], allowed[EOS] = True, False, False
        found += decode(core, allowed, generator)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_no_token_that_the_grammar_forbids(tokenizer, name):
    # Of those that are refused beside a grammar, too; a tripwire ends the request before its answer
    assert len(answers(tokenizer, name)) > (-1 if name == "tripwire" else 20)


def test_with_the_guard_switched_off_one_is_forced(tokenizer, monkeypatch):
    monkeypatch.setattr(pipeline, "leave_forbidden", lambda *_: None)
    with pytest.raises(AssertionError):
        answers(tokenizer, "published")
