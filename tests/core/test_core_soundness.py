"""The second line of defence without the first, and what happens without the second."""

import pytest
import torch
from core_solo import Letters, Solo
from torch.utils._python_dispatch import TorchDispatchMode

from tokenlens import SpecError
from tokenlens.core import soundness
from tokenlens.core.columns import INVALID_STEPS
from tokenlens.spec import METHOD_CONFIGS, parse_spec

VOCAB = 80
WORDS = {"words": ("a",)}
WILD = {
    "soft_grpo_noise": ({"temperature": 1e-50}, ["soft_thinking"]),
    "dirichlet_noise": ({"concentration": 1e-43}, ["soft_thinking"]),
    "latent_grpo": ({"noise": "two_sided", "temperature": 1e-50}, []),
    "selar": ({"push": 3e38}, []),
    "cyclic_reflex": ({"period": 1e-50, **WORDS}, []),
    "static_window": ({"wave": "cosine", "period": 1e-50, **WORDS}, []),
}
"""Numbers that no bound lets through: the issue's, and one for every way to a NaN."""


def unbounded(name, changes):
    """A config that was not validated."""
    config = METHOD_CONFIGS[name]
    needed = config.model_validate({k: v for k, v in changes.items() if k in ("noise", "words")})
    return config.model_construct(**{**dict(needed), **changes})


def solo(name):
    changes, beside = WILD[name]
    methods = [METHOD_CONFIGS[one]() for one in beside]
    return Solo(*methods, unbounded(name, changes), vocab=VOCAB, tokenizer=Letters())


def row(seed=0):
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", WILD)
def test_the_first_line_refuses(name):
    changes, beside = WILD[name]
    methods = [*({"method": one} for one in beside), {"method": name, **changes}]
    with pytest.raises(SpecError):
        parse_spec({"methods": methods})


@pytest.mark.parametrize("name", WILD)
def test_without_the_first_line_the_second_holds(name):
    request = solo(name)
    for step in range(3):
        stock = row(step)
        assert request.step(stock).equal(stock)
        done = request.commit(6)
        assert not done.latent
        assert not done.valid
        assert all(column.isfinite().all() for column in done)
        assert not request.latent
        assert request.entries == {6: 1.0}
    assert request.column(INVALID_STEPS) == 3


def test_without_both_a_mixture_is_no_number(monkeypatch):
    monkeypatch.setattr(soundness, "keep_sound", lambda rows, p, active, base: active | True)
    request = solo("soft_grpo_noise")
    request.run(row())
    assert request.latent
    assert not request.core.next_input.weights[0].isfinite().all()


def test_without_both_an_edit_is_no_number(monkeypatch):
    monkeypatch.setattr(
        soundness, "usable", lambda z, n: (torch.ones(1, dtype=torch.bool), z[:, 0] * 0)
    )
    assert solo("cyclic_reflex").step(row()).isnan().any()


def test_one_request_ends_no_server():
    # 1e-300 is refused; without its bound, what is bound is still held to the table's columns.
    with pytest.raises(SpecError, match="temperature"):
        parse_spec({"methods": [{"method": "lead", "temperature": 1e-300}]})
    lead = METHOD_CONFIGS["lead"]
    gate = lead().gate.model_copy(update={"exempt": "none"})
    for temperature in (1e-300, 0.0):
        config = lead.model_construct(**{**dict(lead()), "gate": gate, "temperature": temperature})
        with pytest.raises(SpecError, match="lead"):
            Solo(config, vocab=VOCAB, tokenizer=Letters())


@pytest.mark.parametrize("kind", ["nan", "inf", "none"])
@pytest.mark.parametrize(
    "config",
    [{"method": "nowait", **WORDS}, {"method": "min_p"}, {"method": "edt"}, {"method": "top_h"}],
    ids=lambda config: config["method"],
)
def test_invalid_steps_are_counted_for_methods_that_only_edit_logits(config, kind):
    method = parse_spec({"methods": [config]}).methods[0]
    request = Solo(method, vocab=VOCAB, tokenizer=Letters())
    bad = row()
    bad[3 if kind != "none" else slice(None)] = {"nan": torch.nan, "inf": torch.inf}.get(
        kind, -torch.inf
    )
    assert request.step(bad).equal(bad) or kind == "nan"
    assert not request.commit(6).valid
    request.run(row(), 6)
    assert request.column(INVALID_STEPS) == 1


class Count(TorchDispatchMode):
    """Counts the ops of a step."""

    def __init__(self):
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        return func(*args, **(kwargs or {}))


def ops_of(*names):
    request = Solo(*(METHOD_CONFIGS[one]() for one in names), vocab=VOCAB)
    request.run(row())
    with Count() as count:
        request.run(row())
    return count.ops


@pytest.mark.parametrize(
    ("names", "most"),
    [
        (["soft_thinking"], 0),
        (["soft_thinking", "gumbel_noise"], 0),
        (["soft_thinking", "soft_grpo_noise"], 17),
        (["min_p"], 13),
    ],
    ids=str,
)
def test_what_the_second_line_costs(names, most, monkeypatch):
    now = ops_of(*names)
    monkeypatch.setattr(soundness, "keep_sound", lambda rows, p, active, base: active)
    ones = torch.ones(1, dtype=torch.bool)
    monkeypatch.setattr(soundness, "usable", lambda z, n: (ones, torch.zeros(1)))
    saved = now - ops_of(*names)
    assert saved <= most
    assert (saved > 0) == (most > 0)
    print(names, now, saved)
