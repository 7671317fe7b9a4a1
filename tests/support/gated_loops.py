"""The gated methods one request at a time, in plain Python, written from the papers and the record
of what the authors' programs do. Nothing of tokenlens is used.

A loop gets the entropies (or probabilities) that the model shows and the tokens that the sampler
draws, and gives for each step the token that is written and what is fed after it: ``(share of the
mixture, {token: share})``, so a token fed as itself is ``(0, {token: 1})``.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Switching:
    """Settings of SwiReasoning and LEAD under the names of their programs."""

    window: int
    alpha: float
    beta: float
    max_new_tokens: int
    newline: int
    enter_anchor: int
    end: int
    eos: int
    exempt: tuple[int, ...] = ()
    # LEAD's bounds in nats
    b1: float = -math.inf
    b2: float = math.inf
    # Switch control
    max_switches: int | None = None
    converge: tuple[int, ...] = ()
    terminate: tuple[int, ...] = ()
    answer_tokens: int = 0


def alone(token):
    return 0.0, {token: 1.0}


def mixed(keep, anchor):
    return keep, {anchor: 1 - keep}


class Published:
    """SwiReasoning or LEAD as its program does it, a step at a time."""

    def __init__(self, settings):
        self.settings = settings
        self.soft, self.stay, self.reference, self.locked = True, 0, None, False
        self.count, self.queue, self.budget, self.steps = 0, [], -1, 0

    def step(self, entropy, token):
        """What is written, what is fed after it, and whether the request is over."""
        s = self.settings
        # The lock looks at what was drawn, before an injected token takes its place.
        self.locked = self.locked or token == s.end
        if self.queue:
            token = self.queue.pop(0)
        to_hard = to_soft = False
        if self.steps == 0:
            self.reference = entropy
        else:
            self.stay += 1
            fell, rose = entropy < self.reference, entropy > self.reference
            to_hard = self.soft and fell and entropy < s.b2
            allowed = self.stay >= s.window and not self.locked
            to_soft = not self.soft and rose and entropy > s.b1 and allowed
            if to_hard or to_soft:
                self.soft, self.stay, self.reference = to_soft, 0, entropy
            self.count += to_hard
        moved = self.steps / s.max_new_tokens
        if to_hard:
            fed = mixed(s.beta + (1 - s.beta) * moved, s.end)
        elif not self.soft or self.locked or token in s.exempt:
            fed = alone(token)
        elif self.steps == 0:
            fed = mixed(0.9, s.newline)
        elif to_soft:
            fed = mixed(s.alpha + (1 - s.alpha) * moved, s.enter_anchor)
        else:
            fed = 1.0, {}
        if s.max_switches is not None:
            if to_hard and s.max_switches <= self.count <= 2 * s.max_switches:
                self.queue = list(s.converge)
            if to_hard and self.count > 2 * s.max_switches:
                self.queue, self.budget = list(s.terminate), s.answer_tokens
            if self.budget >= 0:
                self.budget -= 1
        self.steps += 1
        return token, fed, token == s.eos or self.budget == 0


def switching_published(s, entropies, drawn):
    """One request; the last step's feed is ``None``, because nothing follows it.

    With the steps comes whether the program just left the request, without an end of its text.
    """
    machine, steps = Published(s), []
    for entropy, drawn_token in zip(entropies, drawn, strict=True):
        token, fed, over = machine.step(entropy, drawn_token)
        steps.append((token, None if over else fed))
        if over:
            return steps, token != s.eos
    return steps, False


def switching_default(s, entropies, drawn):
    """As the papers mean it: what is injected is text, and thinking that ended is over."""
    thinking, soft, stay, reference, count = True, True, 0, None, 0
    queue, budget, waiting, steps = [], -1, False, []
    for step, (entropy, token) in enumerate(zip(entropies, drawn, strict=True)):
        injected = bool(queue)
        if injected:
            token = queue.pop(0)
        to_hard = to_soft = began = False
        if thinking and reference is None:
            reference, began = entropy, True
        elif thinking:
            stay += 1
            to_hard = soft and entropy < reference and entropy < s.b2
            to_soft = not soft and entropy > reference and entropy > s.b1 and stay >= s.window
            if to_hard or to_soft:
                soft, stay, reference = to_soft, 0, entropy
            count += to_hard
        thinking = thinking and token != s.end
        moved = step / s.max_new_tokens
        if injected or not thinking:
            fed = alone(token)
        elif to_hard:
            fed = mixed(s.beta + (1 - s.beta) * moved, s.end)
        elif not soft or token in s.exempt:
            fed = alone(token)
        elif began:
            fed = mixed(0.9, s.newline)
        elif to_soft:
            fed = mixed(s.alpha + (1 - s.alpha) * moved, s.enter_anchor)
        else:
            fed = 1.0, {}
        if s.max_switches is not None:
            budget = max(budget - 1, 0) if budget >= 0 else budget
            waiting = (waiting or to_hard) and thinking
            if waiting and not queue:
                waiting = False
                if s.max_switches <= count <= 2 * s.max_switches:
                    queue = list(s.converge)
                elif count > 2 * s.max_switches and budget < 0:
                    queue, budget = list(s.terminate), s.answer_tokens - 1
        over = token == s.eos or budget == 0
        steps.append((token, None if over else fed))
        if over:
            return steps, token != s.eos
    return steps, False


def filtered(p, top_k, top_p):
    """Ids and probabilities that the filters leave, the most probable first."""
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    order = order[:top_k] if top_k else order
    total, before, kept = sum(p[i] for i in order), 0.0, []
    for i in order:
        if before <= top_p:
            kept.append((i, p[i] / total))
        before += p[i] / total
    total = sum(q for _, q in kept)
    return [(i, q / total) for i, q in kept]


@dataclasses.dataclass(frozen=True)
class Selar:
    """Settings of SeLaR."""

    k: int
    threshold: float
    weight: float
    top_k: int
    top_p: float
    end: int
    eos: int
    exempt: tuple[int, ...] = ()
    # Not in the program: thinking that ended is over
    ends: bool = False


def selar(s, rows, drawn):
    """One request of it alone; its program mixes the requests of a batch up."""
    thinking, steps = True, []
    for p, token in zip(rows, drawn, strict=True):
        q = filtered(p, s.top_k, s.top_p)[: s.k]
        total = sum(x for _, x in q)
        q = [(i, x / total) for i, x in q]
        h = min(max(-sum(x * math.log(x) for _, x in q) / math.log(s.k), 0), 1)
        if s.ends:
            thinking = thinking and token != s.end
        if not thinking or h < s.threshold or token in s.exempt:
            fed = alone(token)
        else:
            strength = s.weight * h
            shares = {i: x * (1 + strength) for i, x in q}
            shares[q[0][0]] -= strength
            fed = 0.0, shares
        steps.append((token, None if token == s.eos else fed))
        if token == s.eos:
            break
    return steps, False


@dataclasses.dataclass(frozen=True)
class Router:
    """Settings of ThinkRouter."""

    threshold: float
    top_k: int
    top_p: float
    max_entries: int
    end: int
    eos: int
    greedy_answer: bool = False


def think_router(s, rows, drawn):
    """Concept tokens where the model is sure, sampled tokens elsewhere."""
    thinking, steps = True, []
    for p, token in zip(rows, drawn, strict=True):
        fed = None
        if not thinking and s.greedy_answer:
            token = max(range(len(p)), key=p.__getitem__)
        if thinking and max(p) >= s.threshold:
            q = filtered(p, s.top_k, s.top_p)[: s.max_entries]
            total = sum(x for _, x in q)
            token = q[0][0]
            fed = 0.0, {i: x / total for i, x in q}
        thinking = thinking and token != s.end
        fed = fed if fed is not None and thinking else alone(token)
        steps.append((token, None if token == s.eos else fed))
        if token == s.eos:
            break
    return steps, False


def gate(rule, signals):
    """The gate alone: modes of a script, and how many times it left the latent mode."""
    latent, stay, reference, switches, modes = False, 0, None, 0, []
    for signal in signals:
        high = signal > rule["enter"] or (rule["enter_at_bound"] and signal == rule["enter"])
        high = high or rule["enter"] == -math.inf
        if reference is None:
            latent, reference = rule["first_latent"] or high, signal
        else:
            stay += 1
            risen, fallen = signal > reference, signal < reference
            if not rule["trend"]:
                risen = fallen = True
            if latent and signal < rule["leave"] and fallen and stay >= rule["dwell_latent"]:
                latent, stay, reference, switches = False, 0, signal, switches + 1
            elif (
                not latent
                and high
                and risen
                and stay >= rule["dwell_discrete"]
                and switches < rule["max_switches"]
            ):
                latent, stay, reference = True, 0, signal
        modes.append(latent)
    return modes, switches
