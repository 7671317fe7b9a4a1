"""Logit edits in ``generate()``, beside processors written row by row in plain Python."""

from importlib.resources import files

import pytest
import torch
from test_hf_tiny_reasoner import QUESTIONS, ask
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, generation

from tokenlens.core import Core
from tokenlens.hf import generate_kwargs
from tokenlens.hf.calls import Call
from tokenlens.hf.generate import Runs
from tokenlens.methods.min_p.step import min_p_keep
from tokenlens.methods.top_h.step import top_h_keep
from tokenlens.routing.signals import RunningQuantile

FOLDER = str(files("tokenlens") / "assets" / "tiny-reasoner-small")
THINK, END = 3, 4
WAITS = {"wait": 14, " wait": 15, "Wait": 16, " Wait": 17}


@pytest.fixture(scope="module")
def reasoner():
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(FOLDER, padding_side="left")


class ByHand(LogitsProcessor):
    """A rule for one row at a time: it is given the row's output so far."""

    def __init__(self, rule):
        self.rule, self.length = rule, None

    def __call__(self, input_ids, scores):
        self.length = self.length or input_ids.shape[1]
        scores = scores.clone()
        for row, ids in enumerate(input_ids[:, self.length :].tolist()):
            self.rule(ids, scores[row])
        return scores


def thinking(ids):
    """How many thinking tokens there are, ``None`` outside of thinking."""
    if THINK not in ids or END in ids:
        return None
    return len(ids) - ids.index(THINK) - 1


def wave(t, A, C):
    c = (t % C) / C
    if c <= 0.25:
        return A * c / 0.25
    return A - 2 * A * (c - 0.25) / 0.5 if c <= 0.75 else -A + A * (c - 0.75) / 0.25


def run(reasoner, processors=None, spec=None, tokens=80, questions=QUESTIONS):
    model, tokenizer = reasoner
    inputs = ask(tokenizer, *questions)
    kwargs = generate_kwargs(model, tokenizer, spec) if spec is not None else {}
    if processors:
        kwargs["logits_processor"] = processors
    return model.generate(
        **inputs, **kwargs, max_new_tokens=tokens, do_sample=False, output_scores=True,
        return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip


def same(found, wanted, tolerance=1e-5):
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.scores, wanted.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("profile", ["default", "published"])
def test_cyclic_reflex(reasoner, profile):
    def rule(ids, row):
        if profile == "published":
            t, waits = (None if END in ids else len(ids)), [WAITS["wait"]]
        else:
            t, waits = thinking(ids), WAITS.values()
        for token in waits if t is not None else ():
            row[token] += wave(t, 20.0, 40)

    method = {"method": "cyclic_reflex", "profile": profile, "amplitude": 20, "period": 40,
              "words": ["wait"]}  # fmt: skip
    found = run(reasoner, spec={"methods": [method]})
    same(found, run(reasoner, [ByHand(rule)]))
    assert not torch.equal(found.sequences, run(reasoner).sequences), "the wave changed nothing"


def test_forking_tokens_by_a_running_quantile(reasoner):
    """Each row by its own entropies; a neighbour with a threshold stays by its threshold."""
    quantiles = [RunningQuantile(0.3, 12), None, RunningQuantile(0.3, 12)]
    calls, hot = [], [0, 0, 0]

    def rule(ids, row):
        at = len(calls) % 3
        calls.append(at)
        nats = float(torch.special.entr(row.double().softmax(0)).sum())
        quantile = quantiles[at]
        above = nats > 0.3 if quantile is None else quantile.is_above(nats)
        hot[at] += above
        row /= 1.4 if above else 0.7

    common = {"method": "forking_temperature", "high": 1.4, "low": 0.7}
    by_quantile = {"methods": [{**common, "quantile": 0.7, "window": 12}]}
    specs = [by_quantile, {"methods": [{**common, "threshold": 0.3}]}, by_quantile]
    questions = [*QUESTIONS, "make 9 using 4,5,7"]
    found = run(reasoner, spec=specs, tokens=40, questions=questions)
    same(found, run(reasoner, [ByHand(rule)], tokens=40, questions=questions), 1e-4)
    assert 4 < hot[0] < 36
    assert 4 < hot[2] < 36


@pytest.mark.parametrize("name", ["min_p", "top_h"])
def test_truncations_are_transformers_own(name):
    kinds = {"min_p": "MinPLogitsWarper", "top_h": "TopHLogitsWarper"}
    warper = getattr(generation.logits_process, kinds[name], None)
    if warper is None:
        pytest.skip(f"this transformers has no {kinds[name]}")
    # Rows of every sharpness but the one-hot, whose entropy float32 cannot sum.
    logits = torch.randn(300, 500, generator=torch.Generator().manual_seed(0))
    logits *= torch.linspace(0.2, 3, 300)[:, None]
    for share in (0.1, 0.37, 0.8):
        row, kind = torch.full((300,), share), torch.ones(300, dtype=torch.int64)
        one = torch.ones(300)
        ours = (
            min_p_keep(logits, row, one, kind)
            if name == "min_p"
            else top_h_keep(logits, row, kind, one)
        )
        assert torch.equal(ours, warper(share)(None, logits).isfinite())


def test_a_truncated_run_is_transformers_own(reasoner):
    found = run(reasoner, spec={"methods": [{"method": "min_p", "min_p": 0.15}]})
    same(found, run(reasoner, [generation.logits_process.MinPLogitsWarper(0.15)]))


EVERYTHING = [
    {"method": "cyclic_reflex", "words": ["wait"], "amplitude": 9, "period": 30},
    {"method": "tip", "words": ["wait"]},
    {"method": "nowait", "words": ["Wait"]},
    {"method": "s1", "text": "wait"},
    {"method": "thinking_budget", "budget": 50, "ramp": 0.3, "stop": "step", "grace": 5},
    {"method": "edt"},
    {"method": "min_p"},
    {"method": "top_h", "alpha": 0.9},
]


def test_rows_that_ask_for_nothing_reach_the_sampler_bit_for_bit(reasoner):
    plain = run(reasoner)
    found = run(reasoner, spec=[{"methods": EVERYTHING}, {"methods": []}])
    assert not torch.equal(found.sequences[0], plain.sequences[0])
    assert torch.equal(found.sequences[1], plain.sequences[1])
    for ours, theirs in zip(found.scores, plain.scores, strict=True):
        assert torch.equal(ours[1], theirs[1])


def test_the_waveform_changes_concept_tokens(reasoner):
    soft = {"method": "soft_thinking", "temperature": 1.0}
    wave = {"method": "cyclic_reflex", "words": ["wait"], "amplitude": 30, "period": 20}
    outs = [run(reasoner, spec={"methods": m}).sequences for m in ([soft], [wave, soft])]
    assert not torch.equal(*outs)
    assert int((outs[1] == WAITS["wait"]).sum()) > int((outs[0] == WAITS["wait"]).sum())


def test_a_thinking_budget(reasoner):
    def rule(ids, row):
        if thinking(ids) == 25:
            row[END] = 1e9

    found = run(reasoner, spec={"methods": [{"method": "thinking_budget", "budget": 25}]})
    assert torch.equal(found.sequences, run(reasoner, [ByHand(rule)]).sequences)


def test_s1(reasoner):
    """Masked where it would come: greedy decoding by hand with one end replaced by "wait"."""
    replaced = {}

    def rule(ids, row):
        key = tuple(ids)
        fresh = bool(ids) and replaced.get(key[:-1])
        if thinking(ids) is None:
            return
        used = any(replaced.get(key[:n]) for n in range(len(key)))
        if not used and int(row.argmax()) == END:
            replaced[key] = True
            row[WAITS["wait"]] = 1e9
        elif not used or fresh:
            row[END] = -1e9

    easy = {"questions": ("make 8 using 3,5", "make 2 using 9,7")}
    found = run(reasoner, spec={"methods": [{"method": "s1", "text": "wait"}]}, **easy)
    assert torch.equal(found.sequences, run(reasoner, [ByHand(rule)], **easy).sequences)
    assert replaced, "no end came"


EDIT = {"methods": [{"method": "cyclic_reflex", "amplitude": 20, "period": 40, "words": ["wait"]}]}


class Keeps(LogitsProcessor):
    """Keeps the very tensors that it is handed."""

    def __init__(self):
        self.kept = []

    def __call__(self, input_ids, scores):
        self.kept.append(scores)
        return scores


@pytest.fixture
def in_place(monkeypatch):
    """Whether each step was allowed to edit the logits where they lie."""
    seen, step = [], Core.step

    def watched(core, logits, slots, *, in_place=False):
        seen.append(in_place)
        return step(core, logits, slots, in_place=in_place)

    monkeypatch.setattr(Core, "step", watched)
    return seen


def kept_logits(reasoner, **kwargs):
    model, tokenizer = reasoner
    others = kwargs.pop("logits_processor", ())
    given = generate_kwargs(model, tokenizer, EDIT, logits_processor=others)
    return model.generate(
        **ask(tokenizer, *QUESTIONS), **given, **kwargs, max_new_tokens=40, do_sample=False,
        return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip


def test_logits_that_nobody_else_keeps_are_edited_where_they_lie(reasoner, in_place):
    alone = kept_logits(reasoner, output_scores=True)
    assert in_place
    assert all(in_place)
    raw = kept_logits(reasoner, output_scores=True, output_logits=True)
    assert not in_place[-1]
    # The same edits, bit for bit
    assert torch.equal(alone.sequences, raw.sequences)
    for ours, theirs in zip(alone.scores, raw.scores, strict=True):
        assert torch.equal(ours, theirs)


def test_logits_that_somebody_keeps_are_not_edited(reasoner, in_place):
    keeps = Keeps()
    raw = kept_logits(reasoner, output_scores=True, output_logits=True, logits_processor=[keeps])
    assert in_place
    assert not any(in_place)
    changed = [not torch.equal(*pair) for pair in zip(raw.logits, raw.scores, strict=True)]
    assert any(changed), "nothing was edited"
    for kept, logits in zip(keeps.kept, raw.logits, strict=True):
        assert torch.equal(kept, logits)


@pytest.mark.parametrize("of", ["raw logits", "another processor"])
def test_without_the_guard_what_was_kept_would_be_edited(reasoner, in_place, monkeypatch, of):
    monkeypatch.setattr(Call, "hands_over_logits", True)
    monkeypatch.setattr(Runs, "others", property(lambda runs: []))
    keeps = Keeps()
    if of == "raw logits":
        raw = kept_logits(reasoner, output_scores=True, output_logits=True)
        kept = raw.logits
    else:
        monkeypatch.setattr(Runs, "__iter__", with_others(Runs.__iter__, [keeps]))
        raw = kept_logits(reasoner, output_scores=True)
        kept = keeps.kept
    assert all(in_place)
    assert all(torch.equal(*pair) for pair in zip(kept, raw.scores, strict=True))


def with_others(iterate, others):
    """The list's iteration, with processors in front that it does not know of."""
    return lambda runs: iter([*others, *iterate(runs)])


def test_a_loop_of_the_models_own_hands_nothing_over(reasoner, in_place):
    model, _ = reasoner
    stock = type(model)

    class Own(stock):
        def _sample(self, *args, **kwargs):
            return super()._sample(*args, **kwargs)

    model.__class__ = Own
    try:
        kept_logits(reasoner)
    finally:
        model.__class__ = stock
    assert in_place
    assert not any(in_place)
