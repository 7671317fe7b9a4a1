"""Drafts: a core that steps over them and takes the rejected ones back, against one without any.

The one without decodes token by token, first. The other then gets drafts of what that has sampled,
right or wrong, in batches of any order; whatever it decides of accepted rows, and its state after
each step, has to be the same to the bit.
"""

from random import Random

import numeric_specs as numeric
import pytest
import torch
from built_in import Core, bind
from core_solo import END, EOS, START, Letters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenlens import SpecError
from tokenlens.core.drafts import DraftSteps
from tokenlens.spec import parse_spec
from tokenlens.spec.needs import Need, needs_of

VOCAB, TOKENS, REQUESTS = numeric.VOCAB, 14, 4
TOKENIZER = Letters(numeric.LETTERS)
SOFT = {"method": "soft_thinking"}
WORDS = {"words": ["a", "c"]}
TREND = {"of": "raw", "trend": True, "first": "latent", "dwell_discrete": 2}
PLAUSIBLE = (
    [],
    [{"method": "no_thinking", "text": "ab"}],
    [{"method": "answer_now", "after": 4}],
    [{"method": "answer_now", "after": 2, "text": "ab>ab"}],
    [{"method": "thinking_budget", "budget": 5, "ramp": 0.5}],
    [{"method": "s1", "text": "ab", "max_thinking": 9}],
    [{"method": "alpha_one", "average_thinking": 4, "text": "ab", **WORDS, "step_ends": ["b"]}],
    [{"method": "cyclic_reflex", "amplitude": 5.0, "period": 6.0, **WORDS}],
    [{"method": "tip", "penalty": 6.0, **WORDS}, {"method": "min_p", "min_p": 0.1}],
    [{"method": "nowait", **WORDS}, {"method": "answer_now", "after": 6}],
    [{"method": "edt"}],
    [{"method": "top_h"}],
    [{"method": "top_n_sigma"}],
    [{"method": "forking_temperature", "threshold": 0.4}],
    [{"method": "tripwire", "entropy": 3.5, "temperature": 0.6, "skip": 3}],
    [{**SOFT, "cold_stop": {"entropy_threshold": 3.0, "patience": 2}}, {"method": "gumbel_noise"}],
    [{"method": "swi_reasoning"}],
    [{"method": "lead", "gate": TREND}],
)
"""Specs whose methods have something to do here; beside them, random ones."""


def request_of(random):
    while True:
        if random.random() < 0.5:
            phase = numeric.FIXED["phase"]
            if random.random() < 0.3:
                # Markers of two tokens, which are followed from state to state.
                phase = {"think_start": [START], "think_end": [END, 9]}
            value = {
                "methods": random.choice(PLAUSIBLE),
                "seed": random.randrange(1 << 62),
                "phase": phase,
                "trace": {"level": random.choice(["summary", "full"])},
            }
        else:
            value = numeric.spec(random)
        try:
            spec = parse_spec(value)
            if needs_of(spec) == Need.NOTHING:
                return bind(spec, tokenizer=TOKENIZER, vocab_size=VOCAB, eos_ids=(EOS,))
        except SpecError:
            continue


def logits_of(random):
    """One row, two columns wider than the vocabulary."""
    generator = torch.Generator().manual_seed(random.randrange(1 << 40))
    row = torch.randn(VOCAB + 2, generator=generator) * random.choice([0.1, 1.0, 3.0, 30.0])
    row[EOS] = -50.0
    if random.random() < 0.6:
        # What methods look for: markers, words, ends of sentences.
        row[random.choice([START, END, END, 9, 7, 7, 8, 9, EOS])] += random.choice([3.0, 60.0])
    if random.random() < 0.05:
        row[6] = random.choice([torch.nan, torch.inf])
    return row


def state_of(core, slot):
    """Everything that a slot holds: bits, so that NaN is itself."""
    table, feed = core.table, core.next_input
    floats = [table.floats[slot], feed.weights[slot]]
    found = [table.ints[slot], feed.ids[slot], feed.latent[slot : slot + 1].long()]
    for column, values in table.wide.items():
        (floats if column.kind == "float" else found).append(values[slot])
    return torch.cat([*found, *(bits(one).long() for one in floats)])


def bits(values):
    return values.contiguous().view(torch.int32) if values.is_floating_point() else values


def sampled_of(random, row):
    """The most probable token, or any, as a sampler draws it."""
    if random.random() < 0.85 and not row[:VOCAB].isnan().any():
        return int(row[:VOCAB].argmax())
    return random.choice([START, END, 7, 8, 9, random.randrange(VOCAB)])


class Alone:
    """A request that is decoded token by token, in a core that others share."""

    def __init__(self, core, slot, random):
        slots = torch.tensor([slot])
        self.logits, self.edited, self.tokens = [], [], []
        self.states, self.reports = [state_of(core, slot)], []
        for _ in range(TOKENS):
            row = logits_of(random)
            edited = core.step(row[None].clone(), slots)
            token = sampled_of(random, edited[0])
            report = core.commit(torch.tensor([token]), slots)
            self.logits.append(row)
            self.edited.append(edited[0].clone())
            self.tokens.append(token)
            self.states.append(state_of(core, slot))
            self.reports.append(None if report is None else [column[0] for column in report])


def decode(seed, most_drafts, spare=3, broken=None):
    """Differences between the two ways to decode some requests."""
    random = Random(seed)
    requests = [request_of(random) for _ in range(REQUESTS)]
    prompts = [random.choice([[START], [START, 7], [8, 9], [7, START, 8, END]]) for _ in requests]
    cores = [
        Core(max_slots=REQUESTS, vocab_size=VOCAB, rewind_steps=steps)
        for steps in (0, most_drafts + spare)
    ]
    for core in cores:
        for slot, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            core.add(slot, request, prompt)
    alone = [Alone(cores[0], slot, random) for slot in range(REQUESTS)]
    run = Drafted(cores[1], alone, most_drafts, spare, random)
    if broken is not None:
        broken(cores[1])
    while min(run.generated) < TOKENS:
        run.step()
    assert run.accepted
    return run.differences, run.rejected


class Drafted:
    """The same requests in steps with drafts."""

    def __init__(self, core, alone, most_drafts, spare, random):
        self.core, self.alone, self.random = core, alone, random
        self.most, self.spare = most_drafts, spare
        self.drafted = DraftSteps(core)
        self.generated = [0] * len(alone)
        self.differences, self.accepted, self.rejected = [], 0, 0

    def _plan(self, slot):
        """Drafts of a request, and how many of them an engine accepts."""
        random, begin = self.random, self.generated[slot]
        true = self.alone[slot].tokens[begin:]
        drafts = true[: random.randint(0, min(self.most, len(true) - 1))]
        right = len(drafts)
        for place in range(len(drafts)):
            if random.random() < 0.25:
                wrong = random.choice([-1, START, END, EOS, random.randrange(VOCAB)])
                if wrong != drafts[place]:
                    right = min(right, place)
                drafts[place] = wrong
        if random.random() < 0.2:
            right = random.randint(0, right)
        return drafts, right

    def step(self):
        random, null = self.random, self.core.table.null_slot
        slots = [slot for slot, n in enumerate(self.generated) if n < TOKENS]
        slots = [slot for slot in slots if random.random() < 0.9] + [null] * random.randint(0, 2)
        random.shuffle(slots)
        plans = [([7] * random.randint(0, self.most), 0) if slot == null else self._plan(slot)
                 for slot in slots]  # fmt: skip
        advance = [slot == null or random.random() < 0.9 for slot in slots]
        # Every row of the step, in any order
        rows = [(i, d) for i, (drafts, _) in enumerate(plans) for d in range(len(drafts) + 1)]
        random.shuffle(rows)
        place = {row: index for index, row in enumerate(rows)}
        logits = torch.stack([self._logits(slots[i], plans[i], d) for i, d in rows]) if rows else None
        if logits is None:
            return
        offsets = 1 + max(len(drafts) for drafts, _ in plans)
        places = torch.tensor(
            [[place.get((i, d), place[i, 0]) for i in range(len(slots))] for d in range(offsets)]
        )
        drafts = torch.tensor(
            [[*drafts, *[-1] * self.most][: offsets - 1] for drafts, _ in plans], dtype=torch.int64
        ).T
        stock = logits.clone()
        edited = self.drafted.step(
            logits, torch.tensor(slots), places, drafts, torch.tensor(advance)
        )
        sampled = torch.full((len(slots), offsets), 5)
        count = torch.zeros(len(slots), dtype=torch.int32)
        for i, (slot, (_, right)) in enumerate(zip(slots, plans, strict=True)):
            if slot == null:
                self._same("plain row", edited[places[:, i]], stock[places[:, i]], slot)
                count[i] = 1
            elif advance[i]:
                begin = self.generated[slot]
                tokens = self.alone[slot].tokens[begin : begin + right + 1]
                sampled[i, : len(tokens)] = torch.tensor(tokens)
                count[i] = len(tokens)
                for d in range(len(tokens)):
                    wanted = self.alone[slot].edited[begin + d]
                    self._same(f"logits of offset {d}", edited[places[d, i]], wanted, slot)
        report = self.drafted.commit(sampled, count)
        for i, (slot, (drafts_of, right)) in enumerate(zip(slots, plans, strict=True)):
            if slot == null:
                continue
            if advance[i]:
                self._check_report(report, i, slot, right)
                self.generated[slot] += right + 1
                self.accepted += right
                self.rejected += len(drafts_of) - right
            self._check_state(slot)
        if self.spare and random.random() < 0.2:
            self._take_back(random.choice(range(len(self.alone))))

    def _take_back(self, slot):
        """An engine drops tokens that it had in flight."""
        dropped = min(self.generated[slot], self.random.randint(1, self.spare))
        if dropped and not self.core.idle:
            self.generated[slot] -= dropped
            self.core.rewind(slot, self.generated[slot])
            self.alone[slot].states[self.generated[slot]] = state_of(self.core, slot)

    def _logits(self, slot, plan, offset):
        """The request's own behind what it has sampled, anything behind a wrong draft."""
        drafts, _ = plan
        if slot == self.core.table.null_slot:
            return logits_of(self.random)
        one, begin = self.alone[slot], self.generated[slot]
        if drafts[:offset] == one.tokens[begin : begin + offset]:
            return one.logits[begin + offset]
        return logits_of(self.random)

    def _check_report(self, report, row, slot, right):
        begin = self.generated[slot]
        for offset in range(right + 1):
            wanted = self.alone[slot].reports[begin + offset]
            if report is None or wanted is None:
                assert report is None
                continue
            assert int(report.last[row]) == right
            step = report.newest if offset == right else report.drafts[offset]
            for name, column, value in zip(step._fields, step, wanted, strict=True):
                self._same(f"{name} of offset {offset}", column[row], value, slot)

    def _check_state(self, slot):
        wanted = self.alone[slot].states[self.generated[slot]]
        self._same(f"state after {self.generated[slot]}", state_of(self.core, slot), wanted, slot)

    def _same(self, name, found, wanted, slot):
        if not torch.equal(bits(found), bits(wanted)):
            self.differences.append(f"slot {slot}: {name}: got {found}, wanted {wanted}")


@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.integers(0, 2**40), st.integers(1, 5))
def test_drafts_change_nothing(seed, most_drafts):
    differences, rejected = decode(seed, most_drafts)
    assert differences == []
