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
from tokenlens.core.compiled import Form, Forms
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
    """Everything that a slot holds, and what it is fed: bits, so that NaN is itself."""
    table, feed = core.table, core.next_input
    held = [table.ints[slot], bits(table.floats[slot])]
    held += [bits(values[slot]) for values in table.wide.values()]
    fed = [feed.ids[slot], bits(feed.weights[slot]), feed.latent[slot : slot + 1]]
    return [torch.cat([one.long() for one in several]) for several in (held, fed)]


def bits(values):
    return values.contiguous().view(torch.int32) if values.is_floating_point() else values


def sampled_of(random, row):
    """The most probable token, or any, as a sampler draws it."""
    if random.random() < 0.85 and not row[:VOCAB].isnan().any():
        return int(row[:VOCAB].argmax())
    return random.choice([START, END, 7, 8, 9, random.randrange(VOCAB)])


class Alone:
    """A request that is decoded token by token, in a core that others share."""

    def __init__(self, core, slot, request, random):
        self.methods, self.needs = request.spec.methods, request.needs
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


def decode(seed, most_drafts, spare=3, broken=None, requests=None):
    """Differences between the two ways to decode some requests.

    ``broken`` is given the core with drafts: it plants a fault, or compiled steps.
    """
    random = Random(seed)
    requests = requests or [request_of(random) for _ in range(REQUESTS)]
    prompts = [random.choice([[START], [START, 7], [8, 9], [7, START, 8, END]]) for _ in requests]
    cores = [
        Core(max_slots=REQUESTS, vocab_size=VOCAB, rewind_steps=steps)
        for steps in (0, most_drafts + spare)
    ]
    for core in cores:
        for slot, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            core.add(slot, request, prompt)
    alone = [Alone(cores[0], slot, one, random) for slot, one in enumerate(requests)]
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
        # Of each the newest state that was ever kept, and whether tokens were taken back since
        self.kept, self.taken_back = [0] * len(alone), [False] * len(alone)
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
        # Every row of the step, in any order, but for a step without drafts
        rows = [(i, d) for i, (drafts, _) in enumerate(plans) for d in range(len(drafts) + 1)]
        if len(rows) > len(slots):
            random.shuffle(rows)
        place = {row: index for index, row in enumerate(rows)}
        if not rows:
            return
        logits = torch.stack([self._logits(slots[i], plans[i], d) for i, d in rows])
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
                newest = self.generated[slot] + max(right, len(drafts_of) - 1)
                self.kept[slot] = max(self.kept[slot], newest)
                self.taken_back[slot] = False
                self.generated[slot] += right + 1
                self.accepted += right
                self.rejected += len(drafts_of) - right
            self._check_state(slot)
        if self.spare and random.random() < 0.2:
            self._take_back(random.choice(range(len(self.alone))))

    def _take_back(self, slot):
        """An engine drops tokens that it had in flight."""
        now = self.generated[slot] - self.random.randint(1, self.spare)
        if now >= 0 and now > self.kept[slot] - self.core.rewind_steps and not self.core.idle:
            ended = EOS in self.alone[slot].tokens[: self.generated[slot]]
            self.generated[slot], self.taken_back[slot] = now, True
            # The one that counts for itself is told how many there really are.
            if self.random.random() < 0.5 and not ended:
                self.core.rewind(slot, now)
            else:
                self.core.rewind_rows(torch.tensor([slot]), torch.tensor([now]))
            self._check_state(slot)

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
            told = Need.STATISTICS in self.alone[slot].needs
            skipped = set() if told else {"entropy", "max_probability"}
            skipped |= set() if bool(step.latent[row]) else {"weights", "ids"}
            for name, column, value in zip(step._fields, step, wanted, strict=True):
                if name not in skipped:
                    self._same(f"{name} of offset {offset}", column[row], value, slot)

    def _check_state(self, slot):
        number = self.generated[slot]
        wanted = zip(("state", "feed"), self.alone[slot].states[number], strict=True)
        for (name, value), found in zip(wanted, state_of(self.core, slot), strict=True):
            if name == "state" or not self.taken_back[slot]:
                self._same(f"{name} after {number} tokens", found, value, slot)

    def _same(self, name, found, wanted, slot):
        if not torch.equal(bits(found), bits(wanted)):
            where = (bits(found) != bits(wanted)).reshape(-1).nonzero()[:, 0].tolist()
            got = [(found.reshape(-1)[i].item(), wanted.reshape(-1)[i].item()) for i in where[:3]]
            methods = [config.method for config in self.alone[slot].methods]
            self.differences.append(f"slot {slot}, {methods}: {name}: at {where}: {got}")


@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.integers(0, 2**40), st.integers(1, 5))
def test_drafts_change_nothing(seed, most_drafts):
    assert decode(seed, most_drafts)[0] == []


def test_the_comparison_finds_what_is_not_taken_back():
    def broken(core):
        core.rewind_rows = lambda *_: None

    found = [decode(seed, 4, spare=0, broken=broken) for seed in range(3)]
    assert any(differences for differences, _ in found)
    assert sum(rejected for _, rejected in found) > 0


def test_the_comparison_finds_what_another_offset_intended(monkeypatch):
    from tokenlens.core import drafts

    monkeypatch.setattr(drafts, "_pick", lambda values, offset: values[0])
    assert any(decode(seed, 4)[0] for seed in range(3))


def test_compiled_steps_are_the_same(monkeypatch):
    def bound(methods):
        spec = parse_spec({"methods": methods, "trace": {"level": "full"}, **numeric.FIXED})
        return bind(spec, tokenizer=TOKENIZER, vocab_size=VOCAB, eos_ids=(EOS,))

    def compiled(core):
        core.forms = forms

    def counted(form, *args):
        calls.append(form)
        return run(form, *args)

    calls, run, forms = [], Form.run_commit, Forms(lambda graph, inputs: graph)
    requests = [bound(PLAUSIBLE[index]) for index in (3, 4, 5, 8)]
    core = Core(max_slots=REQUESTS, vocab_size=VOCAB, rewind_steps=6)
    assert forms.warm(core, requests, VOCAB + 2, torch.float32, in_place=True)
    monkeypatch.setattr(Form, "run_commit", counted)
    for seed in range(3):
        assert decode(seed, 3, broken=compiled, requests=requests)[0] == []
    assert len(calls) > 30


def drafted(steps=4):
    """One request that is about to force an end, and a row of logits for each of three offsets."""
    spec = parse_spec({"methods": [{"method": "answer_now", "after": 2}], **numeric.FIXED})
    core = Core(max_slots=1, vocab_size=VOCAB, rewind_steps=steps)
    core.add(0, bind(spec, tokenizer=TOKENIZER, vocab_size=VOCAB, eos_ids=(EOS,)), [START])
    return core, torch.zeros(3, VOCAB), torch.tensor([0]), torch.tensor([[0], [1], [2]])


def test_a_draft_is_judged_behind_those_before_it():
    core, logits, slots, places = drafted()
    steps, advance = DraftSteps(core), torch.tensor([True])
    edited = steps.step(logits, slots, places, torch.tensor([[7], [8]]), advance)
    # The end of thinking is forced behind two tokens of it, which are drafts here.
    assert edited.argmax(dim=1)[2] == END
    assert not edited[:2].any()
    report = steps.commit(torch.tensor([[7, 9, 0]]), torch.tensor([2]))
    assert report.last.tolist() == [1]
    edited = steps.step(torch.zeros(1, VOCAB), slots, places[:1], places[:0], advance)
    assert edited.argmax(dim=1) == END


def test_more_drafts_than_can_be_taken_back_are_refused():
    core, logits, slots, places = drafted(steps=1)
    with pytest.raises(ValueError, match="at most the 1"):
        DraftSteps(core).step(logits, slots, places, torch.tensor([[7], [8]]), torch.tensor([True]))


def test_a_step_that_raises_changes_nothing(monkeypatch):
    core, logits, slots, places = drafted()
    before, calls, step = state_of(core, 0)[0], [], core.step

    def third_raises(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("planted")
        return step(*args, **kwargs)

    monkeypatch.setattr(core, "step", third_raises)
    with pytest.raises(RuntimeError, match="planted"):
        DraftSteps(core).step(logits, slots, places, torch.tensor([[7], [8]]), torch.tensor([True]))
    assert not logits.any()
    assert torch.equal(state_of(core, 0)[0], before)


def test_no_value_is_read_on_the_host():
    core, logits, slots, places = drafted()
    made = Core(max_slots=1, vocab_size=VOCAB, rewind_steps=4, device="meta")
    made.add(0, core._request_of[0], [START])
    steps = DraftSteps(made)
    logits, slots, places = (one.to("meta") for one in (logits, slots, places))
    drafts = torch.tensor([[7], [8]], device="meta")
    steps.step(logits, slots, places, drafts, torch.ones(1, dtype=torch.bool, device="meta"))
    sampled = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    assert steps.commit(sampled, torch.ones(1, dtype=torch.int32, device="meta")) is not None
