"""Each gated method does step by step what an independent loop in plain Python does.

Thousands of random sequences of entropies and tokens, with random settings, many in one batch.
"""

import math
import random

import pytest
import torch
from built_in import Core, bind
from gated_loops import (
    Router,
    gate,
    selar,
    switching_default,
    switching_published,
    think_router,
)
from gated_loops import Selar as SelarSettings
from gated_loops import Switching as Settings
from tokenlens_kernels import dense_mixture

from tokenlens import DecodingSpec
from tokenlens.methods._shared.gate.rule import GateRules, GateState, gate_step
from tokenlens.methods._shared.gate.step import NEVER
from tokenlens.spec import (
    Blend,
    Gate,
    Lead,
    PhaseConfig,
    Selar,
    SwiReasoning,
    SwitchControl,
    ThinkRouter,
)
from tokenlens.spec.needs import Need

VOCAB, HIDDEN, STEPS, BATCH = 13, 6, 40, 250
PAD, START, END, NEWLINE, EOS = 7, 8, 9, 10, 11
# The programs do not look for one: this one is in no sequence.
OPENS = (START,) * 5
MATH = (3, 4)
TABLE = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(1))
TOLERANCE = 2e-5


class Tables:
    """An engine's vectors: the product with the whole table."""

    hosts = Need.DENSE_MIXTURE
    hidden_size = HIDDEN

    def dense(self, logits, active, inverse_temperature):
        return dense_mixture(
            logits, TABLE, active=active, inverse_temperature=inverse_temperature, vocab_size=VOCAB
        )


class Letters:
    """A tokenizer with a letter for each token."""

    def encode(self, text, *, add_special_tokens=True):
        return [ord(letter) - 97 for letter in text]

    def decode(self, ids, **_):
        return text_of(ids)


def text_of(ids):
    return "".join(chr(97 + i) for i in ids)


def palette():
    """Rows of logits: every token on top, at many heights, no two rows of one entropy."""
    draw, rows = random.Random(3), []
    for token in range(VOCAB):
        heights = [0.3, 1.0, 1.7, 2.5, 3.5, 5.0, 8.0]
        # An end of thinking on top is rare enough for the others to be seen.
        for height in heights[:: 3 if token in (END, EOS) else 1]:
            row = [draw.uniform(-0.2, 0.2) for _ in range(VOCAB)]
            row[token] = height + draw.uniform(0, 0.2)
            rows.append(row)
    return torch.tensor(rows)


PALETTE = palette()
RAW = torch.softmax(PALETTE.double(), 1)
ENTROPY = [-sum(p * math.log(p) for p in row) for row in RAW.tolist()]
TOP = PALETTE.argmax(1).tolist()
MIXTURE = RAW @ TABLE.double()


def scripts(draw, number, greedy):
    """Rows of the palette, and the tokens that the sampler draws from them."""
    weights = [0.15 if top == EOS else 1.0 for top in TOP]
    shown = [draw.choices(range(len(TOP)), weights, k=STEPS) for _ in range(number)]
    others = [t for t in range(VOCAB) if t != EOS]
    drawn = [
        [TOP[i] if greedy or draw.random() < 0.5 else draw.choice(others) for i in script]
        for script in shown
    ]
    return shown, drawn


def of_core(configs, shown, drawn):
    """Tokens and fed vectors of a batch, step by step; whether the row was still going."""
    core = Core(max_slots=len(configs), vocab_size=VOCAB, engine_vectors=Tables())
    phase = PhaseConfig(think_start=OPENS, think_end=(END,))
    for slot, config in enumerate(configs):
        spec = DecodingSpec(methods=(config,), phase=phase)
        request = bind(spec, tokenizer=Letters(), vocab_size=VOCAB, eos_ids=(EOS,))
        core.add(slot, request, OPENS)
    slots = torch.arange(len(configs))
    tokens, fed = [], []
    for place in range(STEPS):
        logits = PALETTE[[script[place] for script in shown]]
        edited = core.step(logits, slots)
        forced = edited.amax(1) > 1e5
        sampled = torch.tensor([row[place] for row in drawn])
        sampled = torch.where(forced, edited.argmax(1), sampled)
        core.commit(sampled, slots)
        feed, rows = core.next_input, slice(0, len(configs))
        x = (feed.weights[rows, :, None] * TABLE[feed.ids[rows]]).sum(1)
        x = x + feed.base[rows] * feed.base_weight[rows, None]
        x = torch.where(feed.latent[rows, None], x, TABLE[sampled])
        tokens.append(sampled.tolist())
        fed.append(x.double())
    return tokens, torch.stack(fed)


def wrong(configs, loops, shown, drawn):
    """How many sequences are not the loop's."""
    tokens, fed = of_core(configs, shown, drawn)
    failed = 0
    for row, loop in enumerate(loops):
        steps, over = loop(shown[row], drawn[row])
        same = [tokens[place][row] for place in range(len(steps))] == [token for token, _ in steps]
        # A request that the loop just leaves is ended here.
        if over and len(steps) < STEPS:
            same = same and tokens[len(steps)][row] == EOS
        for place, (_, wanted) in enumerate(steps):
            if wanted is None:
                continue
            share, anchors = wanted
            x = share * MIXTURE[shown[row][place]]
            x = x + sum(w * TABLE[i].double() for i, w in anchors.items())
            same = same and float((fed[place][row] - x).abs().max()) < TOLERANCE
        failed += not same
    return failed


def settings(draw, control, lead):
    """Random settings of the programs."""

    def text():
        ids = [draw.choice([0, 1, 2, 3, 5, 6]) for _ in range(draw.randint(1, 5))]
        if draw.random() < 0.6:
            ids[draw.randrange(len(ids))] = END
        return tuple(ids)

    return Settings(
        window=draw.choice([0, 1, 2, 5]),
        alpha=draw.choice([0.3, 0.6, 1.0]),
        beta=draw.choice([0.4, 0.7]),
        max_new_tokens=draw.choice([STEPS, 100]),
        newline=NEWLINE,
        enter_anchor=PAD if lead else START,
        end=END,
        eos=EOS,
        exempt=draw.choice([(), MATH]),
        b1=draw.choice([1.8, 2.2]) if lead else -math.inf,
        b2=draw.choice([1.0, 1.8]) if lead else math.inf,
        max_switches=draw.choice([1, 2, 3]) if control else None,
        converge=text(),
        terminate=text(),
        answer_tokens=draw.randint(1, 9),
    )


def config_of(s, profile, lead, **fields):
    """The spec's words for the same settings."""
    bounds = {"enter": s.b1, "leave": s.b2, "enter_at_bound": False} if lead else {}
    control = None
    if s.max_switches is not None:
        control = SwitchControl(
            after=s.max_switches, converge=text_of(s.converge), terminate=text_of(s.terminate),
            answer_tokens=s.answer_tokens,
        )  # fmt: skip
    return (Lead if lead else SwiReasoning).model_validate({
        "profile": profile,
        "mixture": "full",
        "gate": Gate(
            of="raw", trend=True, first="latent", dwell_discrete=s.window,
            exempt=s.exempt or "none", **bounds,
        ),
        "first": Blend(tokens=(s.newline,), keep=0.9),
        "enter": Blend(tokens=(s.enter_anchor,), keep=s.alpha, moves=True),
        "leave": Blend(tokens="think_end", keep=s.beta, moves=True),
        "budget": s.max_new_tokens,
        "switch_control": control,
        **fields,
    })  # fmt: skip


LOOPS = {"published": switching_published, "default": switching_default}


def switching_failures(seed, profile, lead, control, **fields):
    draw = random.Random(seed)
    # What the sampler would have drawn beneath an injected token is known where it is greedy.
    shown, drawn = scripts(draw, BATCH, greedy=control and profile == "published")
    chosen = [settings(draw, control, lead) for _ in range(BATCH)]
    loops = [
        lambda script, tokens, s=s: LOOPS[profile](s, [ENTROPY[i] for i in script], tokens)
        for s in chosen
    ]
    return wrong([config_of(s, profile, lead, **fields) for s in chosen], loops, shown, drawn)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("profile", LOOPS)
def test_swi_reasoning_and_lead(profile, lead, control, seed):
    assert switching_failures(seed, profile, lead, control) == 0


@pytest.mark.parametrize(
    "quirk",
    [
        {"injected_as_token": True},
        {"restarts": False},
        {"hidden_end_locks": False},
        {"injected_end_locks": True},
        {"rearms": False},
        {"goes_on_in_answer": False},
    ],
)
def test_each_quirk_of_switch_control_is_needed(quirk):
    assert switching_failures(0, "published", False, True, quirks=quirk) > 0


def test_the_default_is_not_the_published_profile():
    assert switching_failures(0, "default", False, True, quirks={"restarts": True}) > 0
    assert switching_failures(0, "default", False, True, quirks={"injected_as_token": False}) > 0


@pytest.mark.parametrize("published", [True, False])
def test_selar(published):
    draw = random.Random(5)
    shown, drawn = scripts(draw, BATCH, greedy=False)
    configs, loops = [], []
    for _ in range(BATCH):
        temperature = draw.choice([0.6, 1.0])
        s = SelarSettings(
            k=draw.choice([2, 3, 5]), threshold=draw.uniform(0.2, 0.9),
            weight=draw.choice([0.0, 0.5, 1.0]), top_k=draw.choice([0, 6, 9]),
            top_p=draw.choice([0.7, 0.95, 1.0]), end=END, eos=EOS, exempt=draw.choice([(), MATH]),
            ends=not published,
        )  # fmt: skip
        gated = Gate(
            of="topk", unit="fraction", top=s.k, enter=s.threshold, exempt=s.exempt or "none"
        )
        configs.append(Selar.model_validate({
            "profile": "published" if published else "default", "gate": gated,
            "temperature": temperature, "top_k": s.top_k, "top_p": s.top_p, "max_entries": s.k,
            "push": s.weight,
        }))  # fmt: skip
        p = torch.softmax(PALETTE.double() / temperature, 1).tolist()
        loops.append(lambda script, tokens, s=s, p=p: selar(s, [p[i] for i in script], tokens))
    assert wrong(configs, loops, shown, drawn) == 0


@pytest.mark.parametrize("published", [True, False])
def test_think_router(published):
    draw = random.Random(6)
    shown, drawn = scripts(draw, BATCH, greedy=False)
    configs, loops = [], []
    for _ in range(BATCH):
        temperature = draw.choice([0.6, 1.0])
        s = Router(
            threshold=draw.uniform(0.2, 0.9), top_k=draw.choice([0, 6, 9]),
            top_p=draw.choice([0.7, 0.95, 1.0]), max_entries=draw.choice([1, 3, 8]), end=END,
            eos=EOS, greedy_answer=published,
        )  # fmt: skip
        configs.append(ThinkRouter.model_validate({
            "profile": "published" if published else "default",
            "gate": Gate(signal="max_probability", enter=s.threshold), "temperature": temperature,
            "top_k": s.top_k, "top_p": s.top_p, "max_entries": s.max_entries,
        }))  # fmt: skip
        p = torch.softmax(PALETTE.double() / temperature, 1).tolist()
        loops.append(
            lambda script, tokens, s=s, p=p: think_router(s, [p[i] for i in script], tokens)
        )
    assert wrong(configs, loops, shown, drawn) == 0


def test_the_gate_alone():
    draw, number, length = random.Random(7), 3000, 30
    # Ties with the bounds and with each other are common.
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    rules, scripts_of = [], []
    for _ in range(number):
        enter = draw.choice([-math.inf, 0.25, 0.5, 0.75])
        leave = draw.choice([v for v in values if v <= enter]) if enter > 0 else math.inf
        rules.append({
            "enter": enter,
            "leave": leave,
            "enter_at_bound": draw.random() < 0.5,
            "trend": enter == -math.inf or draw.random() < 0.5,
            "first_latent": draw.random() < 0.5,
            "dwell_latent": draw.choice([0, 1, 4]),
            "dwell_discrete": draw.choice([0, 1, 4]),
            "max_switches": draw.choice([1, 2, NEVER]),
        })  # fmt: skip
        scripts_of.append([draw.choice(values) for _ in range(length)])
    together = GateRules(**{name: torch.tensor([r[name] for r in rules]) for name in rules[0]})
    no, zero = torch.zeros(number, dtype=torch.bool), torch.zeros(number, dtype=torch.int64)
    state, modes = GateState(no, no, torch.zeros(number), zero, zero), []
    for place in range(length):
        signal = torch.tensor([script[place] for script in scripts_of])
        state = gate_step(signal, state, together).state
        modes.append(state.latent.tolist())
    for row, (rule, script) in enumerate(zip(rules, scripts_of, strict=True)):
        wanted, switches = gate(rule, script)
        assert [step[row] for step in modes] == wanted
        assert int(state.switches[row]) == switches


@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_an_end_beneath_an_injected_token_counts_as_often_as_it_is_drawn(temperature):
    """One switch, one injected token, and beneath it a row with a known share of ends."""
    number, share = 4000, float(torch.softmax(torch.tensor([1.0, 2.0]) / temperature, 0)[0])
    config = SwiReasoning.model_validate({
        "profile": "published", "first": None, "enter": None, "leave": None, "mixture": "top_k",
        "gate": Gate(of="raw", trend=True, first="latent"),
        "switch_control": SwitchControl(
            after=1, converge="a", terminate="b", temperature=temperature
        ),
    })  # fmt: skip
    phase = PhaseConfig(think_start=OPENS, think_end=(END,))
    core = Core(max_slots=number, vocab_size=VOCAB)
    request = bind(
        DecodingSpec(methods=(config,), phase=phase, seed=4),
        tokenizer=Letters(), vocab_size=VOCAB, eos_ids=(EOS,),
    )  # fmt: skip
    for slot in range(number):
        core.add(slot, request, OPENS, 1 + slot)
    slots = torch.arange(number)
    beneath = torch.full((VOCAB,), -30.0)
    beneath[END], beneath[0] = 1.0, 2.0
    for row in (PALETTE[0], PALETTE[6], beneath):
        sampled = core.step(row.expand(number, -1), slots).argmax(1)
        step = core.commit(sampled, slots)
    # The entropy of the last row is higher than at the switch: latent, unless it locks.
    assert sampled.tolist() == [0] * number
    locked = 1 - float(step.latent.float().mean())
    assert abs(locked - share) < 4 * math.sqrt(share * (1 - share) / number)
