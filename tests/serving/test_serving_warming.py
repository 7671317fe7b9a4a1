"""What an engine compiles while it starts."""

import logging

import pytest
import torch

from tokenlens.core import Core, bind
from tokenlens.core.compiled import Forms
from tokenlens.methods import METHODS
from tokenlens.serving.warming import compositions, warm
from tokenlens.spec import PhaseConfig, parse_spec

VOCAB = 96
LOGGER = logging.getLogger("tokenlens")


def as_it_is(graph, inputs):
    return graph


def names_of(allow):
    return {tuple(one["method"] for one in methods) for methods in compositions(allow)}


def test_what_is_likely_of_what_is_allowed():
    assert names_of(()) == set()
    assert names_of(("lead", "edt")) == {("lead",), ("edt",)}
    # What changes concept weights means nothing without any.
    assert names_of(("dirichlet_noise",)) == set()
    assert ("soft_thinking", "top1") in names_of(("soft_thinking", "top1"))
    assert names_of(None) == {("soft_thinking",), ("soft_thinking", "gumbel_noise")}


@pytest.fixture
def core():
    made = Core(methods=METHODS, max_slots=4, vocab_size=VOCAB)
    made.forms = Forms(as_it_is)
    return made


class FakeBinder:
    """Binds with think markers that are ids: the real one asks a tokenizer for them."""

    width, turn_ends = VOCAB, (2,)

    def bind(self, spec, eos_ids):
        phase = PhaseConfig(think_start=(3,), think_end=(4,))
        spec = spec.model_copy(update={"phase": phase})
        return bind(spec, methods=METHODS, tokenizer=None, vocab_size=VOCAB, eos_ids=eos_ids)


def test_an_engine_starts_with_the_forms_of_what_is_allowed(core, caplog):
    binder = FakeBinder()
    with caplog.at_level(logging.INFO):
        # A budget has no default: what it is a request says.
        assert warm(core, binder, ("thinking_budget",), LOGGER) == (0, 0)
        core.forms = None
        assert warm(core, binder, None, LOGGER) == (0, 0)
    assert core.idle


def test_a_batch_of_an_allowed_method_is_compiled(core):
    binder = FakeBinder()
    made, wanted = warm(core, binder, ("soft_thinking",), LOGGER)
    assert made == wanted == 2
    request = binder.bind(parse_spec({"methods": [{"method": "soft_thinking"}]}), (2,))
    core.add(0, request, [3])
    assert core.forms.of(core, torch.zeros(1, VOCAB), in_place=True) is not None
    assert core.forms.of(core, torch.zeros(1, VOCAB)) is None
