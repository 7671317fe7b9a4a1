"""An engine's vectors: whose they are when slots are used again, and how the matrix is made."""

from pathlib import Path

import pytest
import torch
from core_solo import EOS, MARKERS, START, Letters
from safetensors.torch import load_file
from test_core_numbers import HIDDEN, VOCAB, Lent

from tokenlens.core import Core, bind
from tokenlens.core import engine_vectors as module
from tokenlens.core.next_input import NextInputs
from tokenlens.methods import METHODS
from tokenlens.spec import parse_spec

LATENT = Path(__file__).parents[2] / "tokenlens" / "assets" / "tiny-reasoner-latent"
NOISY = {"method": "soft_tokens", "noise_scale": 0.1}
COCONUT = {"method": "coconut", "steps": 4, "placeholder": 9}
SOFT = {"method": "soft_thinking"}


def request_of(*methods):
    spec = parse_spec({"methods": list(methods), "phase": MARKERS.model_dump(), "seed": 1})
    tokens = Letters("_ .<>abcdefgh".ljust(VOCAB, "?"))
    return bind(spec, methods=METHODS, tokenizer=tokens, vocab_size=VOCAB, eos_ids=[EOS])


def fed_after(before, then):
    """What a slot is fed by a request whose slot was another's; both are of one slot."""
    core = Core(methods=METHODS, max_slots=1, vocab_size=VOCAB, engine_vectors=Lent(1, VOCAB))
    slots = torch.zeros(1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    for methods in (before, then):
        core.add(0, request_of(*methods), [START])
        for _ in range(2):
            logits = torch.randn(1, VOCAB, generator=generator)
            core.commit(core.step(logits, slots).argmax(dim=1), slots)
        if methods is before:
            core.remove(0)
    feed = core.next_input
    return float(feed.noise_scale[0]), float(feed.base_weight[0]), bool(feed.latent[0])


CASES = [
    ((NOISY,), (COCONUT,), (0.0, 1.0, True)),
    ((COCONUT,), (SOFT,), (0.0, 0.0, True)),
    ((COCONUT,), (NOISY,), (0.1, 0.0, True)),
]


@pytest.mark.parametrize(("before", "then", "expected"), CASES)
def test_a_slot_that_is_used_again_adds_nothing_of_its_last_request(before, then, expected):
    assert fed_after(before, then) == pytest.approx(expected)


def test_without_the_clearing_it_does(monkeypatch):
    def only_latent(self, slot):
        self.latent[slot] = False

    monkeypatch.setattr(NextInputs, "clear", only_latent)
    wrong = [before for before, then, ok in CASES if fed_after(before, then) != pytest.approx(ok)]
    assert len(wrong) >= 2


def halves(table, head, dtype):
    """The matrix of a table in two shards, as each of its ranks makes it."""
    kept, half = [], len(table) // 2

    def first(tensor):
        kept.append(tensor.clone())
        return tensor

    def second(tensor):
        return tensor + kept.pop(0)

    module.alignment_matrix(table[:half], head[:half], dtype, first)
    return module.alignment_matrix(table[half:], head[half:], dtype, second)


def test_the_matrix_of_shards_is_that_of_the_table_in_float64_alone():
    # As many tokens as coordinates: beyond what float32 can solve.
    weights = load_file(LATENT / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    head = weights.get("lm_head.weight", table)

    def apart(dtype):
        whole = module.alignment_matrix(table, head, dtype)
        return float((halves(table, head, dtype) - whole).norm() / whole.norm())

    assert apart(torch.float64) < 1e-5
    assert apart(torch.float32) > 1e-3


def test_blocks_of_rows_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    table, head = (torch.randn(50, HIDDEN, generator=generator) for _ in range(2))
    whole = (
        module.alignment_matrix(table, head),
        module.mean_norm(table),
        module.root_mean_square(table),
    )
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    parts = (
        module.alignment_matrix(table, head),
        module.mean_norm(table),
        module.root_mean_square(table),
    )
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-6)
    assert torch.allclose(whole[1], table.norm(dim=1).mean())
    assert torch.allclose(whole[2], (table**2).mean().sqrt())
