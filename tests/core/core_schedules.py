"""Random schedules of requests through one core, compared with the oracle bit for bit.

A schedule owns three slots and does to them what an engine does: it admits and drops requests,
reuses slots, leaves requests out of a step, steps rows without committing them, and overrides
tokens. Many schedules share a batch, whose rows are shuffled before every step and mostly again
before every commit.
"""

import random
from functools import cache

import torch
from built_in import Core, bind
from core_oracle import Oracle, Pool
from core_solo import Letters
from tokenlens_kernels import signals_topk

from tokenlens import parse_spec

SLOTS = 3
TICKS = 6
FORCED = 1e6
TOKENIZER = Letters("_ .<>abcdefgh" + "ijklmnopqrstuvwxyzABCDEFGHI")
SINGLE = {"think_start": [3], "think_end": [4]}
SEVERAL = {"think_start": [3, 5], "think_end": [4, 5, 6]}
SEEDS = (0, (1 << 63) - 1)

PROMPTS = (
    [], [5, 3], [3, 5], [9, 3, 5, 7], [3, 7, 4], [3, 4, 1, 1], [3, 7, 4, 5, 6, 1],
    [3, 5, 7, 4, 5, 6, 9], [7, 8], [4], [4, 5], [3], [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 3, 5],
)  # fmt: skip


def _soft(**settings):
    return {"method": "soft_thinking", "max_entries": 13, **settings}


def _cold(threshold, patience, **settings):
    stop = {"entropy_threshold": threshold, "patience": patience}
    return _soft(cold_stop=stop, top_k=12, **settings)


GUMBEL, DIRICHLET = {"method": "gumbel_noise"}, {"method": "dirichlet_noise"}
TOP1 = {"method": "top1"}
ROUTE = {"method": "random_route", "latent_share": 0.6}
NO_THINKING = {"method": "no_thinking"}
SOON = {"method": "answer_now", "after": 2}
SOON_WITH_TEXT = {"method": "answer_now", "after": 1, "text": "ab>ab"}
PUBLISHED = {"profile": "published"}

METHODS = (
    [],
    [_soft(top_k=8)],
    [_soft(top_k=0, top_p=1.0)],
    [_soft(top_k=5, top_p=0.8, min_p=0.1, max_entries=3)],
    [_soft(temperature=0.0, top_k=8)],
    [_soft(top_k=1)],
    [_soft(top_k=8, eos_while_latent="forbid")],
    [_cold(2.0, 2)],
    [_cold(1.0, 1, max_entries=4)],
    [_cold(2.5, 3, eos_while_latent="forbid")],
    [_cold(2.0, 2, **PUBLISHED)],
    [_cold(1.0, 1, **PUBLISHED, quirks={"start": "thinking"})],
    [_soft(top_k=8, **PUBLISHED), GUMBEL],
    [_cold(2.0, 2), GUMBEL],
    [_soft(top_k=8, max_entries=4), DIRICHLET],
    [_cold(1.5, 2), {**DIRICHLET, "concentration": 0.5}],
    [_soft(top_k=8), TOP1],
    [_cold(2.0, 1), GUMBEL, TOP1],
    [_soft(top_k=8), ROUTE],
    [_cold(2.0, 2, **PUBLISHED), GUMBEL, ROUTE],
    [NO_THINKING],
    [{**NO_THINKING, "text": "abc"}],
    [SOON],
    [_soft(top_k=8), SOON_WITH_TEXT],
    [_cold(2.0, 1), SOON],
    [_soft(top_k=8), NO_THINKING],
    [SOON_WITH_TEXT, DIRICHLET, ROUTE, TOP1, _cold(1.5, 1)],
)


def make_pool(vocab_size):
    """Rows of logits, three columns wider than the vocabulary, with everything that happens."""
    generator = torch.Generator().manual_seed(vocab_size)
    width = vocab_size + 3
    rows = [torch.randn(width, generator=generator) * scale for scale in (0.1, 1, 1, 3, 3, 10, 30)]
    for token in (2, 2, 3, 4, 4, 5, 6):
        row = torch.randn(width, generator=generator)
        row[token] += 6
        rows.append(row)
    rows.append(torch.zeros(width))
    row = torch.zeros(width)
    row[[5, 7]] = 20.0
    rows.append(row)
    for place, value in ((6, torch.nan), (6, torch.inf), (6, -torch.inf), (vocab_size, torch.nan)):
        row = torch.randn(width, generator=generator)
        row[place] = value
        rows.append(row)
    rows.append(torch.full((width,), -torch.inf))
    row = torch.full((width,), -torch.inf)
    row[2] = 1.0
    rows.append(row)
    rows = torch.stack(rows)
    # The padding would win every comparison.
    rows[:, vocab_size + 1 :] = 1e9
    return Pool(rows, vocab_size, min(64, vocab_size))


@cache
def _request(methods, several, seed, level, eos, vocab_size):
    spec = parse_spec(
        {
            "methods": METHODS[methods],
            "phase": SEVERAL if several else SINGLE,
            "seed": seed,
            "trace": {"level": level},
        }
    )
    return spec, bind(spec, tokenizer=TOKENIZER, vocab_size=vocab_size, eos_ids=eos)


def row_keyed_signals(logits, **arguments):
    """A broken signals op: the noise depends on the row."""
    arguments["seed"] = arguments["seed"] + torch.arange(len(logits))
    return signals_topk(logits, **arguments)


class Batch:
    """One core, and the schedules that share it.

    ``broken`` names a fault to plant: the comparison must find it.
    """

    def __init__(self, seed, schedules, pool, broken=None):
        self.seed, self.pool, self.broken = seed, pool, broken
        self.random = random.Random(seed)
        self.core = Core(
            max_slots=schedules * SLOTS,
            vocab_size=pool.vocab_size,
            signals=row_keyed_signals if broken == "noise of the row" else signals_topk,
        )
        if broken == "slots not emptied":
            self._forget_defaults()
        self.live = {}
        self.schedules = schedules
        self.differences = []
        self.compared = 0
        self.tick = 0

    def _forget_defaults(self):
        table = self.core.table
        write = table.write

        def keep(slot, values):
            old = {column: table.column(column)[slot].clone() for column in table.fields}
            write(slot, values)
            for column in table.fields:
                if column.kind != "float" and column not in values:
                    table.column(column)[slot] = old[column]

        table.write = keep

    def run(self):
        """All ticks; returns the differences."""
        for self.tick in range(TICKS):
            for schedule in range(self.schedules):
                self._admit(schedule)
            rows = [
                (slot, self.random.randrange(len(self.pool.rows)))
                for slot in self.live
                if self.random.random() < 0.85
            ]
            rows += [(None, self.random.randrange(len(self.pool.rows))) for _ in range(3)]
            self.random.shuffle(rows)
            slots = self._slots(rows)
            tokens = self._step(rows, slots)
            # Some engines commit exactly what they stepped, and nothing comes between.
            as_stepped = self.random.random() < 0.4
            if not as_stepped or self.random.random() < 0.3:
                self._come_and_go({slot for slot, _ in rows})
            self._commit(tokens, slots if as_stepped else None)
        return self.differences

    def _admit(self, schedule):
        chance = self.random.random
        for slot in range(schedule * SLOTS, (schedule + 1) * SLOTS):
            if slot in self.live and chance() < 0.06:
                del self.live[slot]
                self.core.remove(slot)
            # Sometimes on top of a request that nobody removed.
            if chance() < (0.03 if slot in self.live else 0.2):
                self._add(slot)

    def _come_and_go(self, stepped):
        """Between a step and its commit: an engine that schedules ahead admits and drops then."""
        for slot in range(self.schedules * SLOTS):
            if slot in self.live and self.random.random() < 0.02:
                # Its token may still be committed: it belongs to nobody.
                del self.live[slot]
                self.core.remove(slot)
            elif slot not in self.live and slot not in stepped and self.random.random() < 0.03:
                self._add(slot)

    def _add(self, slot):
        choose = self.random.choice
        eos, level = choose(((2,), (2, 11))), choose(("summary", "summary", "full"))
        several, methods = self.random.random() < 0.3, self.random.randrange(len(METHODS))
        spec, request = _request(methods, several, choose(SEEDS), level, eos, self.pool.vocab_size)
        prompt = choose(PROMPTS)
        # Noise is the oracle's most expensive fact: few positions, so that it is found again.
        noisy = any(config.method.endswith("_noise") for config in spec.methods)
        position = 5 if noisy else None
        self.core.add(slot, request, prompt, position)
        texts = {c.method: getattr(c, "text", None) for c in spec.methods}
        self.live[slot] = Oracle(
            spec,
            prompt,
            self.pool,
            eos=eos,
            starts=[list(spec.phase.think_start)],
            ends=[list(spec.phase.think_end)],
            texts={m: TOKENIZER.encode(text) for m, text in texts.items() if text},
            position=position,
        )

    def _slots(self, rows):
        null = self.core.table.null_slot
        return torch.tensor([null if row[0] is None else row[0] for row in rows])

    def _step(self, rows, slots):
        logits = self.pool.rows[[index for _, index in rows]]
        given = logits.clone()
        edited = self.core.step(logits, slots)
        self._equal("logits changed in place", logits, given)
        masked, forced, tokens = [], [], []
        for row, (slot, index) in enumerate(rows):
            oracle = self.live.get(slot)
            intent = None
            if oracle is not None:
                oracle.step(index)
                intent = oracle.intent
                masked += [(row, token) for token in oracle.masked()]
            if intent is not None and intent["forced"]:
                forced.append((row, intent["recorded"]))
            tokens.append(self._sample(intent))
        for places, value in ((masked, -torch.inf), (forced, FORCED)):
            if places:
                given[tuple(map(list, zip(*places, strict=True)))] = value
        self._equal("returned logits", edited, given, rows)
        return [(slot, token) for (slot, _), token in zip(rows, tokens, strict=True)]

    def _sample(self, intent):
        if intent is not None and intent["forced"] and self.random.random() < 0.92:
            return intent["recorded"]
        usual = (3, 4, 4, 5, 5, 6, 6)
        odd = self.random.randrange(self.pool.vocab_size)
        return self.random.choice((*usual, odd, odd, odd, odd))

    def _commit(self, rows, slots):
        if slots is None:
            rows = [row for row in rows if self.random.random() < 0.95]
        order = list(rows)
        if slots is None:
            self.random.shuffle(order)
        advance = [self.random.random() < 0.85 for _ in order]
        if self.random.random() < 0.3:
            advance = [True] * len(order)
        if slots is None:
            slots = self._slots(rows if self.broken == "slots in the old order" else order)
        mask = None if all(advance) or self.broken == "everything advances" else advance
        step = self.core.commit(
            torch.tensor([token for _, token in order]),
            slots,
            None if mask is None else torch.tensor(mask),
        )
        records, places = [], []
        for place, ((slot, token), advanced) in enumerate(zip(order, advance, strict=True)):
            oracle = self.live.get(slot)
            if oracle is None or oracle.plain or not advanced:
                continue
            record = oracle.commit(token)
            if record is not None:
                records.append({**record, "slot": slot})
                places.append(place)
        if records:
            self._compare(step, records, places, order)
        self._compare_state()

    def _compare(self, step, records, places, order):
        everyone = list(zip(places, records))
        readers = [one for one in everyone if one[1]["statistics"]]
        for name in (name for name in step._fields if name in records[0] or name == "advanced"):
            chosen = readers if name in ("entropy", "max_probability") else everyone
            if not chosen:
                continue
            places, records = zip(*chosen)
            places, shown = list(places), [order[place] for place in places]
            found = getattr(step, name)[places]
            if name == "advanced":
                wanted = torch.ones(len(places), dtype=torch.bool)
            else:
                values = [record[name] for record in records]
                stack = isinstance(values[0], torch.Tensor)
                wanted = torch.stack(values) if stack else torch.tensor(values)
            self._equal(f"step.{name}", found, wanted, shown)
        places, records = zip(*everyone)
        shown = [order[place] for place in places]
        slots = [record["slot"] for record in records]
        latent = torch.tensor([record["latent"] for record in records])[:, None]
        tokens = torch.tensor([record["token"] for record in records])[:, None]
        # One at a time, as a request alone would divide.
        weights = torch.cat(
            [r["weights"][None] / r["weights"][None].sum(1, keepdim=True) for r in records]
        )
        ids = torch.stack([r["ids"] for r in records])
        alone = torch.zeros_like(weights)
        alone[:, 0] = 1
        feed = self.core.next_input
        self._equal("feed.weights", feed.weights[slots], torch.where(latent, weights, alone), shown)
        self._equal("feed.ids", feed.ids[slots], torch.where(latent, ids, tokens), shown)
        self._equal("feed.latent", feed.latent[slots], latent[:, 0], shown)
        self.compared += len(records)

    def _compare_state(self):
        watched = {
            "phase": "phase", "generated": "generated", "thinking_tokens": "thinking_tokens",
            "soft_thinking.cold_stop_counter": "counter", "soft_thinking.cold_stops": "cold_stops",
            "count.latent_steps": "latent_steps", "count.forced_steps": "forced_steps",
            "count.invalid_steps": "invalid_steps", "soft_thinking.aborted": "aborted",
            "finished": "finished",
        }  # fmt: skip
        slots = [slot for slot, oracle in self.live.items() if not oracle.plain]
        if not slots:
            return
        table = self.core.table
        for column in table.columns:
            if column.name in watched:
                name = watched[column.name]
                wanted = torch.tensor([int(getattr(self.live[slot], name)) for slot in slots])
                found = table.column(column)[slots]
                self._equal(f"state {column.name}", found, wanted, [(s, None) for s in slots])
        empty = sorted(set(range(self.schedules * SLOTS + 1)) - set(self.live))
        found = self.core.next_input.latent[empty]
        self._equal("latent slots without a request", found, torch.zeros_like(found))

    def _equal(self, name, found, wanted, rows=None):
        if found.dtype.is_floating_point:
            # NaN rows are compared too, and so is the sign of zero.
            same = found.view(torch.int32) == wanted.view(torch.int32)
        else:
            same = found == wanted.to(found.dtype)
        if bool(same.all()):
            return
        row = int((~same).reshape(len(same), -1).any(1).nonzero()[0])
        where = f"seed {self.seed}, tick {self.tick}, {name}, row {row}"
        if rows is not None:
            slot = rows[row][0]
            oracle = self.live.get(slot)
            where += f", slot {slot}"
            if oracle is not None:
                names = [c.method for c in (oracle.soft, oracle.gumbel, oracle.dirichlet) if c]
                where += f", {names}, history {oracle.history}"
        self.differences.append(f"{where}: got {found[row]}, wanted {wanted[row]}")
