"""What the tests of the logit-edit methods share: requests at a given step, small tokenizers."""

import json
from pathlib import Path

import torch
from built_in import Core, bind

from tokenlens import DecodingSpec
from tokenlens.core import Phase
from tokenlens.core.columns import GENERATED, PHASE, PROMPT_THINKING, THINKING_TOKENS
from tokenlens.spec import PhaseConfig

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "logit_methods.json").read_text(encoding="utf-8")
)
START, END, EOS = 1, 2, 3
MARKERS = PhaseConfig(think_start=(START,), think_end=(END,))


class Pieces:
    """A tokenizer whose tokens are given by id; text is cut greedily, longest piece first."""

    def __init__(self, pieces):
        self.pieces = dict(enumerate(pieces)) if isinstance(pieces, list) else pieces
        self.ids = {piece: token for token, piece in self.pieces.items()}

    def encode(self, text, *, add_special_tokens=False):
        ids = []
        while text:
            longest = max(
                (piece for piece in self.ids if piece and text.startswith(piece)),
                key=len,
                default=None,
            )
            ids.append(0 if longest is None else self.ids[longest])
            text = text[1 if longest is None else len(longest) :]
        return ids

    def decode(self, ids, **kwargs):
        return "".join(self.pieces.get(int(i), "�") for i in ids)


# fmt: off
PIECES = Pieces(
    ["<unk>", "<think>", "</think>", "<eos>", "wait", "Wait", " wait", " Wait", "but", "But",
     " But", "Alternatively", "\n\n", ".\n\n", "\n", "a", "b", "c", "d", "e", "butter", " anyone",
     "any"]
)
# fmt: on
VOCAB = len(PIECES.pieces)


class Bench:
    """A core with one request a row, all with the same methods; counters can be set."""

    def __init__(self, *methods, rows=1, vocab=VOCAB, tokenizer=PIECES, prompt=(START,), **spec):
        fields = {"phase": MARKERS, **spec}
        seeds = fields.pop("seeds", None)
        self.core = Core(max_slots=rows, vocab_size=vocab)
        for slot in range(rows):
            seed = {"seed": seeds[slot]} if seeds else {}
            request = bind(
                DecodingSpec(methods=methods, **fields, **seed),
                tokenizer=tokenizer,
                vocab_size=vocab,
                eos_ids=[EOS],
            )
            self.core.add(slot, request, list(prompt))
        self.slots = torch.arange(rows)
        self.vocab, self.rows = vocab, rows

    def set(self, field, values):
        self.core.table.column(field)[: self.rows] = torch.as_tensor(values)

    def at(self, positions):
        """Pretend that so many tokens were generated, all of them thinking."""
        self.set(GENERATED, positions)
        self.set(THINKING_TOKENS, positions)
        return self

    def edited(self, logits=None):
        logits = torch.zeros(self.rows, self.vocab) if logits is None else logits
        return self.core.step(logits, self.slots)

    def run(self, tokens=None, logits=None):
        """A whole step; the engine samples the arg-max unless tokens are given."""
        edited = self.edited(logits)
        tokens = edited.argmax(1) if tokens is None else torch.as_tensor(tokens).expand(self.rows)
        self.core.commit(tokens, self.slots)
        return tokens

    def decode(self, steps, choose):
        """Tokens of one row: ``choose`` gives the logits' favourite at each step."""
        out = []
        for step in range(steps):
            logits = torch.zeros(self.rows, self.vocab)
            logits[:, choose(step) if callable(choose) else choose[step]] = 5.0
            out.append(int(self.run(logits=logits)[0]))
        return out

    def get(self, field):
        return self.core.table.column(field)[: self.rows]


__all__ = ["END", "EOS", "GENERATED", "MARKERS", "PHASE", "PIECES", "PROMPT_THINKING", "START",
           "THINKING_TOKENS", "VECTORS", "VOCAB", "Bench", "Phase", "Pieces"]  # fmt: skip
