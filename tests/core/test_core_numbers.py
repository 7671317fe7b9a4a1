"""No number of a spec, and no logits, make a step that is not finite.

Two lines of defence: bounds on every number, and a look at what each step made. Each is tried
without the other.
"""

import math
from random import Random

import numeric_specs as numeric
import numpy as np
import pytest
import torch
from built_in import Core, bind
from core_solo import END, EOS, Letters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lent_vectors import HIDDEN, Lent, table
from operator_files import Layers, allow_toys

from tokenlens import DecodingSpec, SpecError
from tokenlens.core.columns import INVALID_STEPS
from tokenlens.core.forcing import FORCED_LOGIT
from tokenlens.core.next_input import gaussian
from tokenlens.spec import METHOD_CONFIGS, parse_spec
from tokenlens.spec.registry import NEEDS_LATENT

VOCAB, TABLE = numeric.VOCAB, table(numeric.VOCAB)
TOKENIZER = Letters(numeric.LETTERS)
NUMBERS = dict(numeric.numbers(numeric.SCHEMA))


@pytest.fixture(scope="module", autouse=True)
def toys():
    """Files of this model's width: another test of this process may have named others so."""
    allow_toys(HIDDEN, VOCAB)


def logits_of(kind, generator):
    """One row, three columns wider than the vocabulary; no request reads the padding."""
    row = torch.randn(VOCAB + 3, generator=generator)
    if kind == "flat":
        row = torch.zeros(VOCAB + 3)
    elif kind == "peaked":
        row[int(row[0].abs() * 1e6) % VOCAB] = 60.0
    elif kind == "huge":
        row = row * 1e37
    elif kind == "large":
        row = row * 1e5
    elif kind == "tiny":
        row = row * 1e-38
    elif kind == "masked":
        row[torch.rand(VOCAB + 3, generator=generator) < 0.9] = -torch.inf
        row[5] = 0.5
    elif kind == "one":
        row[:] = -torch.inf
        row[EOS] = 1.0
    elif kind == "none":
        row[:] = -torch.inf
    elif kind == "nan":
        row[6] = torch.nan
    elif kind == "inf":
        row[6] = torch.inf
    row[VOCAB:] = torch.nan
    return row


GOOD = ("random", "flat", "peaked", "huge", "large", "tiny", "masked", "one")
BAD = ("none", "nan", "inf")


def admitted(value):
    """A bound spec, or None where it is refused; nothing else leaves admission."""
    try:
        spec = value if isinstance(value, DecodingSpec) else parse_spec(value)
        return bind(spec, tokenizer=TOKENIZER, vocab_size=VOCAB, eos_ids=numeric.ENDS)
    except SpecError:
        return None


def decode(requests, kinds, seed):
    """Run requests side by side and check each step; the numbers of invalid steps."""
    rows = len(requests)
    lent, layers = Lent(rows, VOCAB), Layers(rows, HIDDEN)
    core = Core(max_slots=rows, vocab_size=VOCAB, engine_vectors=lent, layers=layers)
    for slot, request in enumerate(requests):
        core.add(slot, request, numeric.PROMPT)
    generator, slots = torch.Generator().manual_seed(seed), torch.arange(rows)
    for index, kind in enumerate(kinds):
        one_kind = kind if isinstance(kind, str) else None
        stock = torch.stack(
            [logits_of(one_kind or kind[row % len(kind)], generator) for row in range(rows)]
        )
        edited = core.step(stock.clone(), slots)
        fine = stock[:, :VOCAB].amax(dim=1).isfinite()
        check_logits(core, stock[:, :VOCAB], edited[:, :VOCAB], fine)
        tokens = torch.where(fine, edited[:, :VOCAB].nan_to_num(-1).argmax(1), 7)
        # Sometimes another one than the most probable: a sampler does so too.
        tokens = torch.where((torch.arange(rows) + index) % 5 == 4, 9, tokens)
        step = core.commit(tokens, slots)
        check_step(core, step, fine)
    return core.table.column(INVALID_STEPS).tolist()[:rows]


def check_logits(core, stock, edited, fine):
    forced = edited >= min(FORCED_LOGIT, edited.amax())
    assert not edited[fine].isnan().any(), "an edit made a NaN"
    assert not (edited[fine] == torch.inf).any(), "an edit made an infinity"
    assert (edited[fine].amax(dim=1) > -torch.inf).all(), "an edit left nothing to sample"
    # What came unusable leaves as it came, but for a token that is forced.
    changed = ~((edited == stock) | (edited.isnan() & stock.isnan()))
    assert (changed[~fine].sum(dim=1) <= 1).all()
    assert not (changed[~fine] & ~forced[~fine]).any()


def check_step(core, step, fine):
    if step is None:
        return
    for name, column in step._asdict().items():
        assert column.isfinite().all(), name
    assert not (step.latent & ~step.valid).any(), "an invalid step is fed as a mixture"
    assert not (step.latent & ~fine).any()
    feed, rows = core.next_input, len(fine)
    for fed in (feed.weights, feed.base, feed.base_weight, feed.noise_scale):
        assert fed[:rows].isfinite().all()
    mass = feed.weights[:rows].sum(dim=1) + feed.base_weight[:rows]
    torch.testing.assert_close(mass, torch.ones(rows), rtol=0, atol=1e-4)
    mixture = (feed.weights[:rows, :, None] * TABLE[feed.ids[:rows]]).sum(dim=1)
    mixture = mixture + feed.base[:rows] * feed.base_weight[:rows, None]
    mixture = mixture + feed.noise(rows, HIDDEN)
    assert mixture.isfinite().all()
    assert gaussian(feed.noise_seed[:rows], feed.noise_position[:rows], HIDDEN).isfinite().all()


def test_every_number_of_every_spec_has_both_bounds():
    assert len(NUMBERS) > 100
    for path, node in NUMBERS.items():
        assert "minimum" in node or "exclusiveMinimum" in node, path
        assert "maximum" in node or "exclusiveMaximum" in node, path
        for end in numeric.ends(node):
            assert abs(end) <= (2**63 - 1 if node["type"] == "integer" else 1e7), path


def within(value, node):
    """Whether a number is between a node's bounds, as a column keeps it: in float32."""
    bounds = (("minimum", "__ge__"), ("maximum", "__le__"),
              ("exclusiveMinimum", "__gt__"), ("exclusiveMaximum", "__lt__"))  # fmt: skip
    kept = np.float32(value)
    return all(getattr(kept, test)(np.float32(node[b])) for b, test in bounds if b in node)


def test_no_number_leaves_its_bounds_by_being_kept_as_float32():
    found = [node for node in NUMBERS.values() if node["type"] == "number"]
    assert len(found) > 50
    for path, node in NUMBERS.items():
        if node["type"] == "number":
            low, high = numeric.ends(node)
            assert within(low, node), path
            assert within(high, node), path
            # Of these, some devices make 0.
            assert not 0 < low < 2.0**-126, path
    assert not within(5e-324, {"exclusiveMinimum": 0})
    assert not within(math.nextafter(1, 0), {"exclusiveMaximum": 1})


def build(name, changes):
    """A spec around one method with some fields changed, and what it needs beside it."""
    needed = {
        "thinking_budget": {"budget": 3, "ramp": 0.5},
        "alpha_one": {"average_thinking": 2, "text": "a", "words": ["a"], "step_ends": ["b"]},
        "hapo": {"median": 0.1, "std": 0.5, "scale_pos": 1.0, "scale_neg": -1.0},
        "answer_now": {"after": 3},
        "s1": {"text": "a"},
        "swi_reasoning": {"first": {"tokens": [7], "keep": 0.9}},
        "softcotpp": {"placeholder": 7},
    }
    words = {"words": ["a"]} if "words" in METHOD_CONFIGS[name].model_fields else {}
    config = {**words, **needed.get(name, {}), **changes, "method": name}
    methods = [config]
    if name in NEEDS_LATENT:
        methods.insert(0, {"method": "soft_thinking"})
    return {"methods": methods, "trace": {"level": "full"}, "seed": 1, **numeric.FIXED}


def one_number(name):
    """Specs of a method with one number at one of its ends, nested ones included."""
    model = METHOD_CONFIGS[name]
    node = numeric.resolve({"$ref": f"#/$defs/{model.__name__}"})
    for field, below in node["properties"].items():
        for path, number in numeric.numbers(below):
            for end in numeric.ends(number):
                keys = [key for key in path if not key.startswith(("anyOf", "oneOf"))]
                found = end
                if any(key == "items" or key.startswith("prefixItems") for key in keys):
                    continue  # ids and windows: integers, tried at random below
                for key in reversed(keys):
                    found = {key: found}
                if field == "gate":
                    found = {**model.model_fields["gate"].default.model_dump(), **found}
                    found["exempt"] = "none"
                if field in ("first", "enter", "leave") and isinstance(found, dict):
                    found = {"tokens": [7], "keep": 0.5, **found}
                yield {field: found}


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_both_ends_of_every_number_alone_and_together(name):
    alone = list(one_number(name))
    low, high, mixed = {}, {}, {}
    for index, change in enumerate(alone):
        (low, high)[index % 2].update(change)
        mixed.update(change if index % 4 in (0, 3) else {})
    requests = [admitted(build(name, change)) for change in (*alone, low, high, mixed)]
    found = [request for request in requests if request is not None]
    # Inconsistent ones are few: an id beyond this vocabulary, enter and leave the wrong way round.
    assert len(found) >= 0.5 * len(requests)
    decode(found, [GOOD, GOOD[3:] + GOOD[:3], BAD + GOOD, GOOD[5:] + GOOD[:5]], seed=3)


@settings(max_examples=40, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_random_specs_at_the_ends_of_their_ranges(seed, more):
    random = Random(seed * 3 + more)
    requests = []
    while len(requests) < 5:
        request = admitted(numeric.spec(random))
        if request is not None:
            requests.append(request)
    kinds = [[random.choice(GOOD + BAD[: 1 + 2 * (random.random() < 0.3)]) for _ in range(6)]
             for _ in range(5)]  # fmt: skip
    decode(requests, kinds, seed % 1000)


def test_the_random_specs_reach_every_method():
    for name in METHOD_CONFIGS:
        # Of its own, so that a method that is added changes no other one's specs.
        random = Random(name)
        names = [name] if name not in NEEDS_LATENT else ["soft_thinking", name]
        assert any(admitted(numeric.spec(random, names)) for _ in range(24)), name


NOISY = [{"method": "soft_thinking"}, {"method": "soft_grpo_noise"}]


@pytest.mark.parametrize("methods", [NOISY, [{"method": "cot2", "scale_logits": False}]])
@pytest.mark.parametrize("kind", [*GOOD, *BAD])
def test_what_is_recorded_behind_the_end_of_thinking_is_finite(methods, kind):
    spec = {"methods": methods, "seed": 1, **numeric.FIXED}
    core = Core(max_slots=1, vocab_size=VOCAB)
    core.add(0, admitted(spec), numeric.PROMPT)
    generator, slots = torch.Generator().manual_seed(0), torch.tensor([0])
    for token in (7, END, 7):
        core.step(logits_of(kind, generator)[None], slots)
        step = core.commit(torch.tensor([token]), slots)
    assert not step.latent
    assert step.log_probability == 0
    for name, column in step._asdict().items():
        assert column.isfinite().all(), name


def test_logits_at_the_low_end_draw_no_padding():
    spec = {"methods": [{"method": "cot2", "scale_logits": False}], "seed": 1, **numeric.FIXED}
    core = Core(max_slots=1, vocab_size=VOCAB)
    core.add(0, admitted(spec), numeric.PROMPT)
    row = torch.full((1, 4 * VOCAB), torch.finfo(torch.float32).min)
    row[:, :VOCAB:2] = -torch.inf
    for _ in range(8):
        core.step(row, torch.tensor([0]))
        step = core.commit(torch.tensor([7]), torch.tensor([0]))
        drawn = step.ids[step.weights > 0]
        assert (drawn < VOCAB).all()
        assert (drawn % 2 == 1).all()
