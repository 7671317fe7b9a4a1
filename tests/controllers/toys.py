"""Toy chains for the public programs' outputs: logits are a row of a table, by the last token."""

import math
from dataclasses import dataclass

from tokenlens.routing import Chunk
from tokenlens.routing.facts import Fact


class ToyVocabulary:
    """Tokens are letters; no tokenizer behind it."""

    def __init__(self, size, eos):
        self.pieces = [chr(97 + i) for i in range(size)]
        self.eos_ids = frozenset((eos,))
        self.tokenizer = self

    def piece(self, token):
        return self.pieces[token]

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) - 97 for letter in text]

    def decode(self, ids, **_):
        return "".join(self.pieces[i] for i in ids)

    def content(self, token):
        return self.pieces[token].encode()


def softmax(row, temperature=1.0):
    highest = max(row)
    weights = [math.exp((value - highest) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


@dataclass
class Toy:
    """A backend; ``uniforms`` are consumed one a sampled token, in the order of the calls."""

    table: list
    vocabulary: ToyVocabulary
    uniforms: tuple = ()
    trips = True
    gives_full_entropy = True
    at: int = 0

    async def generate(self, ask):
        context, made = list(ask.context), 0
        while True:
            how = ask.sampling
            plain = softmax(self.table[context[-1]])
            temperature = how.temperature or 1.0
            drawn = softmax(self.table[context[-1]], temperature)
            told = drawn if ask.warped else plain
            entropy = -sum(p * math.log(p) for p in told if p > 0)
            if how.temperature == 0:
                token = max(range(len(drawn)), key=drawn.__getitem__)
            else:
                token = self.peek(drawn)
            ranked = sorted(range(len(told)), key=lambda i: (-told[i], i))
            top = tuple((i, math.log(told[i])) for i in ranked[: max(1, ask.facts)])
            fact = Fact(token, math.log(told[token]), top, entropy)
            if ask.trip is not None and ask.trip.is_met(fact):
                yield Chunk((), "", 0, None, "trip", (fact,))
                return
            if how.temperature != 0:
                self.at += 1
            context.append(token)
            made += 1
            end = ask.matcher.push(token)
            finish = {None: None, "eos": "eos"}.get(end, "stop")
            if finish is None and made >= ask.max_tokens:
                finish = "length"
            yield Chunk((token,), "", 1, None, finish, (fact,))
            if finish is not None:
                return

    def peek(self, shares):
        u, total = self.uniforms[self.at], 0.0
        for i, share in enumerate(shares):
            total += share
            if total > u:
                return i
        return len(shares) - 1

    async def release(self, session):
        pass

    async def close(self):
        pass
