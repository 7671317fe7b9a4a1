"""An oracle for the core: one request at a time, in plain Python, written from the documentation.

It knows nothing of slots, rows, tables or hooks. Only the weights come from the ops, called for one
row alone; everything else (phases, Cold Stop, forcing, counters, what is fed) is spelled out here.
"""

import struct
from copy import copy
from functools import lru_cache

import torch
from tokenlens_kernels import philox, signals_topk

PROMPT, THINKING, ANSWER = 0, 1, 2
NO_NOISE = (0.0, 0, 0)


def single(value):
    """A number as the state keeps it: float32."""
    return struct.unpack("f", struct.pack("f", value))[0]


class Facts:
    """What the ops say of one row: scalars, the filtered entries, the concept token."""

    def __init__(self, outputs):
        logsumexp, entropy, max_probability, probabilities, ids, weights, weight_ids = outputs
        self.valid = bool(torch.isfinite(logsumexp[0]))
        self.entropy, self.max_probability = entropy[0], max_probability[0]
        self.probabilities, self.ids = probabilities, ids
        self.weights, self.weight_ids = weights[0], weight_ids[0]


class Pool:
    """A fixed set of logits rows, and what the ops say of each, alone; remembered."""

    def __init__(self, rows, vocab_size, width):
        self.rows, self.vocab_size, self.width = rows, vocab_size, width
        self.facts = lru_cache(maxsize=None)(self._facts)
        self.dirichlet_facts = lru_cache(maxsize=None)(self._dirichlet_facts)

    def _facts(self, row, masked, active, temperature, top_k, top_p, min_p, entries, gumbel):
        tau, seed, position = gumbel
        logits = self.rows[row][None].clone()
        logits[:, list(masked)] = -torch.inf

        def one(value, dtype=torch.float32):
            return torch.tensor([value], dtype=dtype)

        # A temperature is kept in float32 and inverted there.
        inverse = one(temperature).reciprocal()
        outputs = signals_topk(
            logits,
            active=one(active, torch.bool),
            inverse_temperature=inverse,
            top_k=one(top_k, torch.int64),
            top_p=one(top_p),
            min_p=one(min_p),
            max_entries=one(entries, torch.int64),
            noise_temperature=one(tau),
            seed=one(seed, torch.int64),
            position=one(position, torch.int64),
            vocab_size=self.vocab_size,
            width=self.width,
        )
        return Facts(outputs)

    def _dirichlet_facts(self, alpha, seed, position, *arguments):
        facts = copy(self.facts(*arguments, NO_NOISE))
        if facts.valid:
            entries = arguments[-1]
            facts.weights, facts.weight_ids = self._dirichlet(facts, alpha, entries, seed, position)
        return facts

    def _dirichlet(self, facts, alpha, entries, seed, position):
        p, ids = facts.probabilities, facts.ids
        alpha = torch.tensor([alpha], dtype=torch.float32)
        draws = philox.gamma(p * alpha, torch.tensor([[seed]]), torch.tensor([[position]]), ids)
        draws = torch.where(p > 0, draws, -torch.inf)
        weights = (draws - draws.amax(1, keepdim=True)).exp()
        weights = weights / weights.sum(1, keepdim=True)
        weights, order = weights.sort(dim=1, descending=True, stable=True)
        ids = ids.gather(1, order)
        weights = torch.where(torch.arange(self.width) < entries, weights, 0.0)
        weights = weights / weights.sum(1, keepdim=True)
        return weights[0], torch.where(weights > 0, ids, ids[:, :1])[0]


class Oracle:
    """One request's whole life."""

    def __init__(self, spec, prompt, pool, *, eos, starts, ends, texts, position=None):
        self.pool, self.eos = pool, eos
        self.seed = spec.seed
        configs = {config.method: config for config in spec.methods}
        self.soft = configs.get("soft_thinking")
        self.gumbel, self.dirichlet = configs.get("gumbel_noise"), configs.get("dirichlet_noise")
        self.route, self.top1 = configs.get("random_route"), "top1" in configs
        # In the order of the registry: no_thinking, then answer_now.
        self.enders = [
            [0 if name == "no_thinking" else configs[name].after, texts.get(name), False]
            for name in ("no_thinking", "answer_now")
            if name in configs
        ]
        self.traced = spec.trace.level == "full"
        self.plain = not configs and not self.traced
        if self.soft and self.soft.rules.forced_end == "last_token":
            ends = [ends[0][-1:]]
        self.starts, self.ends = starts, ends
        self.history = list(prompt)
        self.position = len(prompt) if position is None else position
        self.phase = self._phase_of(list(prompt))
        self.from_first_token = bool(self.soft) and self.soft.rules.start == "first_token"
        if self.from_first_token:
            self.phase = THINKING
        self.thinking_tokens = self.generated = 0
        self.counter = self.cold_stops = 0
        self.latent_steps = self.forced_steps = self.invalid_steps = 0
        self.aborted = self.finished = False
        self.forcing, self.at = None, 0
        self.intent = None

    def _phase_of(self, prompt):
        started, ended = -1, -1
        for place in range(len(prompt)):
            if any(prompt[place : place + len(m)] == list(m) for m in self.starts):
                started = place
            for marker in self.ends:
                if prompt[place : place + len(marker)] == list(marker):
                    ended, stop = place, place + len(marker)
        if started < 0 and ended < 0:
            return PROMPT
        if started > ended:
            return THINKING
        # Token 1 is the blank of the tests' tokenizer.
        return ANSWER if all(token == 1 for token in prompt[stop:]) else PROMPT

    # One step.

    def step(self, row):
        """Intend something from a row of the pool; the state stays as it is."""
        if self.plain:
            self.intent = None
            return
        forcing, at = self.forcing, self.at
        done = [ender[2] for ender in self.enders]
        for index, (after, text, was_done) in enumerate(self.enders):
            if self.phase == THINKING and self.thinking_tokens >= after and not was_done:
                if forcing is None:
                    forcing = list(text if text is not None else self.ends[0])
                    at = self._begun() if forcing == list(self.ends[0]) else 0
                # A text that ends thinking ends it whenever it is opened.
                done[index] = text is not None and not self._ends_thinking(text)
        facts = self._facts(row)
        counter, cold_stops, aborted = self.counter, self.cold_stops, self.aborted
        latent, forced, recorded = False, False, None
        if self.soft and facts.valid:
            thinking, answering = self.phase == THINKING, self.phase == ANSWER
            counts = (thinking or answering) and self._cold(facts)
            fires = counts and counter + 1 >= self.soft.cold_stop.patience
            new = counter + 1 if counts else 0
            top = int(facts.weight_ids[0])
            if thinking:
                latent, forced, recorded = True, True, top
                counter = new
                if fires and top not in self.eos and forcing is None:
                    counter, cold_stops = 0, cold_stops + 1
                    forcing, at = list(self.ends[0]), self._begun()
            elif answering:
                if self.soft.rules.greedy_answer:
                    forced, recorded = True, top
                if self.soft.rules.abort_answer_on_low_entropy:
                    counter = new
                    aborted = aborted or fires
        if self.aborted:
            forced, recorded = True, self.eos[0]
        if latent and self.route and not self._routed_latent():
            latent, forced = False, False
        if self.top1:
            latent = False
        if forcing is not None:
            latent, forced, recorded = False, True, forcing[at]
        self.intent = {
            "latent": latent, "forced": forced, "recorded": recorded, "facts": facts,
            "forcing": forcing, "at": at, "done": done, "counter": counter,
            "cold_stops": cold_stops, "aborted": aborted,
        }  # fmt: skip

    def _begun(self):
        """How many tokens of the end marker the newest tokens are: it is completed from there."""
        end = list(self.ends[0])
        for length in range(len(end) - 1, 0, -1):
            if self.history[-length:] == end[:length]:
                return length
        return 0

    def _facts(self, row):
        masked, soft = (), self.soft
        if soft and soft.eos_while_latent == "forbid" and self.phase == THINKING:
            masked = tuple(self.eos)
        answers = soft and (soft.rules.greedy_answer or soft.rules.abort_answer_on_low_entropy)
        if soft and (self.phase == THINKING or (self.phase == ANSWER and answers)):
            asked = (
                row, masked, True, max(soft.temperature, 1e-6),
                soft.top_k if soft.temperature > 0 else 1,
                soft.top_p, soft.min_p, soft.max_entries,
            )  # fmt: skip
            if self.dirichlet:
                alpha = self.dirichlet.concentration
                return self.pool.dirichlet_facts(alpha, self.seed, self.position, *asked)
            if self.gumbel:
                return self.pool.facts(*asked, (self.gumbel.temperature, self.seed, self.position))
            return self.pool.facts(*asked, NO_NOISE)
        # Where nobody looks, the settings do not matter; a full trace wants the model's own.
        return self.pool.facts(row, masked, self.traced, 1.0, 0, 1.0, 0.0, 64, NO_NOISE)

    def _cold(self, facts):
        stop = self.soft.cold_stop
        return stop is not None and float(facts.entropy) < single(stop.entropy_threshold)

    def _routed_latent(self):
        draw = philox.uniform(
            torch.tensor(self.seed), philox.offset(torch.tensor(self.position), 0, philox.GATE)
        )
        return float(draw) < single(self.route.latent_share)

    def masked(self):
        """Ids that the edit takes out of this request's logits."""
        soft = self.soft
        forbids = soft is not None and soft.eos_while_latent == "forbid"
        if not forbids or self.phase != THINKING:
            return []
        # Without anything left to sample, or beside a NaN, the edit is undone.
        return list(self.eos) if self.intent["facts"].valid else []

    def commit(self, token):
        """Move on by a token; returns the step's record, None if the request was finished."""
        if self.finished:
            return None
        intent, before, facts = self.intent, self.phase, self.intent["facts"]
        self.forcing, self.at = intent["forcing"], intent["at"]
        for ender, done in zip(self.enders, intent["done"], strict=True):
            ender[2] = done
        self.counter, self.cold_stops = intent["counter"], intent["cold_stops"]
        self.aborted = intent["aborted"]
        position = self.position
        self.history.append(token)
        self.position += 1
        self.generated += 1
        self.thinking_tokens += before == THINKING
        if self._ends_with(self.ends):
            self.phase = ANSWER
        elif self._ends_with(self.starts) and not self.from_first_token:
            self.phase = THINKING
        as_recorded = token == intent["recorded"]
        if self.forcing is not None:
            self.at = self.at + 1 if as_recorded else 0
            if self.at == len(self.forcing):
                self.forcing, self.at = None, 0
        if before == THINKING and self.phase == ANSWER:
            self.counter = 0
        self.finished = token in self.eos
        latent = intent["latent"] and as_recorded
        latent = latent and self.phase == THINKING and not self.finished
        forced = intent["forced"] and as_recorded
        self.latent_steps += latent
        self.forced_steps += forced
        self.invalid_steps += not facts.valid
        return {
            "position": position, "phase": before, "token": token, "latent": latent,
            "forced": forced, "valid": facts.valid, "entropy": facts.entropy,
            "max_probability": facts.max_probability, "weights": facts.weights,
            "ids": facts.weight_ids,
            # Rows that neither record nor read the statistics may be spared them.
            "statistics": self.traced or bool(self.soft and self.soft.cold_stop),
        }  # fmt: skip

    def _ends_thinking(self, text):
        last = [max([i for i in range(len(text)) if any(list(text[i : i + len(m)]) == list(m)
                     for m in markers)], default=-1)
                for markers in (self.starts, self.ends)]  # fmt: skip
        return last[1] > last[0]

    def _ends_with(self, markers):
        return any(self.history[-len(m) :] == list(m) for m in markers)
