"""Sampled tokens beside drafts are as frequent as without any: rejection sampling over our rows.

The engine's part is played by the rule of Leviathan et al. (arXiv 2211.17192, section 2.3) for a
draft that is one token: it is accepted with its probability, and what replaces it is drawn from the
others. Seeds are fixed, so that what is compared is the same in every run.
"""

import pytest
import torch
from built_in import Core, bind
from core_solo import END, EOS, MARKERS, START, VOCAB, Letters

from tokenlens.core.drafts import DraftSteps
from tokenlens.spec import parse_spec

DRAWS, LENGTH, DRAFTS = 1024, 5, 2
SPECS = {
    "counts": [{"method": "nowait", "words": ["a"]}, {"method": "answer_now", "after": 3}],
    "schedule": [{"method": "cyclic_reflex", "amplitude": 4.0, "period": 3.0, "words": ["b"]}],
    "statistics": [{"method": "edt"}, {"method": "s1", "text": "a", "max_thinking": 4}],
}


class Draws:
    """Many requests of one spec, decoded by a model that looks at the newest token alone."""

    def __init__(self, methods, seed, rewind_steps=0):
        spec = parse_spec({"methods": methods, "seed": 3, "phase": MARKERS.model_dump(mode="json")})
        request = bind(spec, tokenizer=Letters(), vocab_size=VOCAB, eos_ids=(EOS,))
        self.core = Core(max_slots=DRAWS, vocab_size=VOCAB, rewind_steps=rewind_steps)
        for slot in range(DRAWS):
            self.core.add(slot, request, [START])
        self.slots = torch.arange(DRAWS)
        self.newest = torch.full((DRAWS,), START)
        self.random = torch.Generator().manual_seed(seed)
        # [VOCAB, VOCAB]: the model
        self.model = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1)) * 1.5
        self.model[:, EOS] = -30.0

    def draw(self, logits):
        probabilities = torch.softmax(logits, dim=-1)
        return torch.multinomial(probabilities, 1, generator=self.random)[:, 0]

    def alone(self):
        """``[DRAWS, LENGTH]``: token by token."""
        tokens = []
        for _ in range(LENGTH):
            self.newest = self.draw(self.core.step(self.model[self.newest], self.slots))
            self.core.commit(self.newest, self.slots)
            tokens.append(self.newest)
        return torch.stack(tokens, dim=1)

    def drafted(self):
        """The same in steps over drafts."""
        steps = DraftSteps(self.core)
        tokens = torch.zeros(DRAWS, LENGTH + DRAFTS + 1, dtype=torch.int64)
        length = torch.zeros(DRAWS, dtype=torch.int64)
        places = torch.arange(DRAWS * (DRAFTS + 1)).view(DRAWS, -1).T
        while (length < LENGTH).any():
            drafts = torch.empty(DRAFTS, DRAWS, dtype=torch.int64)
            seen = self.newest
            for offset in range(DRAFTS):
                # The most probable, or any.
                likely = self.model[seen].argmax(dim=1)
                other = torch.randint(VOCAB, (DRAWS,), generator=self.random)
                chosen = torch.rand(DRAWS, generator=self.random) < 0.6
                seen = drafts[offset] = torch.where(chosen, likely, other)
            inputs = torch.cat([self.newest[None], drafts])
            logits = self.model[inputs.T.reshape(-1)]
            edited = steps.step(logits, self.slots, places, drafts, length < LENGTH)
            rows = torch.softmax(edited.view(DRAWS, DRAFTS + 1, VOCAB), dim=-1)
            judged = rows[:, :DRAFTS].gather(2, drafts.T[..., None])[..., 0]
            accepted = torch.rand(judged.shape, generator=self.random) < judged
            count = accepted.long().cumprod(dim=1).sum(dim=1)
            left = rows.gather(1, count[:, None, None].expand(-1, 1, VOCAB))[:, 0]
            rejected = torch.cat([drafts, drafts[:1]]).gather(0, count[None])[0]
            left[torch.arange(DRAWS)[count < DRAFTS], rejected[count < DRAFTS]] = 0.0
            # What a running sum leaves of a token that is forced, and was the draft
            left = torch.where(left.sum(1, keepdim=True) > 0, left, 1.0)
            final = torch.multinomial(left, 1, generator=self.random)[:, 0]
            sampled = torch.cat([drafts, drafts[:1]]).T.scatter(1, count[:, None], final[:, None])
            moves = length < LENGTH
            for offset in range(DRAFTS + 1):
                write = moves & (offset <= count)
                place = torch.where(write, length + offset, tokens.shape[1] - 1)
                tokens.scatter_(1, place[:, None], sampled[:, offset : offset + 1])
            steps.commit(sampled, torch.where(moves, count + 1, 0))
            length = torch.where(moves, length + count + 1, length)
            self.newest = torch.where(moves, final, self.newest)
        return tokens[:, :LENGTH]


def excess(one, other):
    """Pearson's statistic of two samples over its degrees of freedom, the worst of all places.

    Of single tokens and of pairs of neighbours, which tell of what depends on the token before.
    """
    worst = 0.0
    for place in range(LENGTH):
        for columns in ([place], [place - 1, place]):
            if columns[0] < 0:
                continue
            cells = [
                sum(rows[:, c] * VOCAB**i for i, c in enumerate(columns)) for rows in (one, other)
            ]
            a, b = (torch.bincount(cell, minlength=VOCAB**2).double() for cell in cells)
            seen = a + b >= 20
            statistic = ((a - b)[seen] ** 2 / (a + b)[seen]).sum()
            freedom = max(1, int(seen.sum()) - 1)
            worst = max(worst, float((statistic - freedom) / (2 * freedom) ** 0.5))
    return worst


BOUND = 5.0
"""Standard deviations of the statistic; nine of them are looked at."""


@pytest.mark.parametrize("name", SPECS)
def test_sampled_tokens_are_as_frequent_as_without_drafts(name):
    alone = Draws(SPECS[name], seed=1).alone()
    drafted = Draws(SPECS[name], seed=2, rewind_steps=DRAFTS).drafted()
    assert excess(alone, drafted) < BOUND


def test_frequencies_tell_of_drafts_that_are_not_taken_back(monkeypatch):
    alone = Draws(SPECS["counts"], seed=1).alone()
    assert excess(alone, Draws(SPECS["counts"], seed=3).alone()) < BOUND
    monkeypatch.setattr(Core.func, "rewind_rows", lambda *_: None)
    kept = Draws(SPECS["counts"], seed=2, rewind_steps=DRAFTS).drafted()
    assert excess(alone, kept) > 4 * BOUND
    assert (alone == END).any()
