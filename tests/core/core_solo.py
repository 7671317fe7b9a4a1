"""One request in a core of its own, driven by hand; shared by the tests of the core."""

import torch
from built_in import Core, bind

from tokenlens import DecodingSpec
from tokenlens.spec import PhaseConfig

# Token ids of the toy vocabulary.
START, END, EOS = 3, 4, 2
VOCAB = 13
MARKERS = PhaseConfig(think_start=(START,), think_end=(END,))


class Letters:
    """A tokenizer with a token for every character of ``letters``: its index."""

    def __init__(self, letters="_!.<>abcdefgh "):
        self.letters = letters

    def encode(self, text, *, add_special_tokens=True):
        return [max(0, self.letters.find(c)) for c in text]

    def decode(self, ids, **kwargs):
        return "".join(self.letters[i] for i in ids)


class Solo:
    """A request alone: ``step`` with logits, ``commit`` what the engine would have sampled."""

    def __init__(
        self,
        *methods,
        prompt=(START,),
        vocab=VOCAB,
        eos=(EOS,),
        seed=0,
        phase=MARKERS,
        trace=None,
        tokenizer=None,
        sample=0,
        **core,
    ):
        fields = {"trace": trace} if trace else {}
        spec = DecodingSpec(methods=methods, seed=seed, phase=phase, **fields)
        self.request = bind(spec, tokenizer=tokenizer, vocab_size=vocab, eos_ids=eos)
        if sample:
            self.request = self.request.sample(sample)
        self.core = Core(max_slots=1, vocab_size=vocab, **core)
        self.core.add(0, self.request, list(prompt))
        self.slots = torch.tensor([0])
        self.edited = None

    def step(self, row):
        """Decide from one row of logits; returns the edited row."""
        self.edited = self.core.step(torch.as_tensor(row)[None], self.slots)
        return self.edited[0]

    def commit(self, token=None):
        """Commit a token, by default the edited row's arg-max as a greedy engine would."""
        token = int(self.edited[0].argmax()) if token is None else token
        step = self.core.commit(torch.tensor([token]), self.slots)
        if step is None:
            return None
        return type(step)(*(column[0] for column in step))

    def run(self, row, token=None):
        """A whole step."""
        self.step(row)
        return self.commit(token)

    def column(self, field):
        """A column of the request's state, as Python numbers."""
        return self.core.table.column(field)[0].tolist()

    @property
    def latent(self):
        """Whether the next input is a mixture."""
        return bool(self.core.next_input.latent[0])

    @property
    def entries(self):
        """The next input: ids and weights of the live entries."""
        feed = self.core.next_input
        return {
            int(i): float(w) for i, w in zip(feed.ids[0], feed.weights[0], strict=True) if w > 0
        }


def peaked(token, height=8.0, vocab=VOCAB):
    """Logits whose arg-max is a token."""
    row = torch.linspace(0, 1, vocab).flip(0).contiguous()
    row[token] = height
    return row
