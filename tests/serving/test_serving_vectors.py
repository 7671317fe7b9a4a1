"""Vectors beside concept tokens: whose extent, which rows, what is refused, what the head shows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from built_in import Core, bind
from torch import nn

from tokenlens.errors import SpecError
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.embedding import Calls
from tokenlens.serving.engine_vectors import ServedVectors
from tokenlens.serving.faults import FORGOTTEN
from tokenlens.serving.refusals import allows_vectors, check_vectors, vectors_of
from tokenlens.serving.settings import Settings, vector_bytes
from tokenlens.serving.store import PAGE, ConceptStore, entry_bytes
from tokenlens.serving.vectors import VectorStore
from tokenlens.spec import parse_spec
from tokenlens.spec.needs import Need
from tokenlens.vllm.head import HeadInput

VOCAB, HIDDEN = 40, 8
COCONUT = {"method": "coconut", "steps": 5, "placeholder": 9}
NOISY = {"method": "soft_tokens", "noise_scale": 0.1, "max_entries": 8}
SOFT = {"method": "soft_thinking"}


def request_of(*methods, **phase):
    markers = {"think_start": [1], "think_end": [2], **phase}
    spec = parse_spec({"methods": list(methods), "phase": markers, "seed": 3})
    return bind(spec, tokenizer=None, vocab_size=VOCAB)


class Head:
    """A head whose n-th rows are known."""

    width = HIDDEN

    def __init__(self):
        self.calls = 0
        self.wanted = 0

    def weight(self):
        return torch.eye(VOCAB, HIDDEN)

    def arm(self, num_rows):
        self.wanted = num_rows
        self.calls += 1

    def rows(self):
        return torch.full((self.wanted, HIDDEN), float(self.calls))


def make(capacity=64, slots=3):
    """A batch whose engine lends vectors, and its head."""
    table = nn.Module()
    table.weight = nn.Parameter(torch.randn(VOCAB, HIDDEN))
    table.shard_indices = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=VOCAB)
    head = Head()
    source = ServedVectors(table, lambda tensor: tensor, head, 1.0, VOCAB)
    store = ConceptStore(slots, VOCAB, 16 * PAGE * entry_bytes(VOCAB), 400, torch.device("cpu"))
    vectors = VectorStore(source, store, capacity)
    core = Core(
        max_slots=slots,
        vocab_size=VOCAB,
        rewind_steps=REWIND_STEPS,
        engine_vectors=source,
        history=(store.weights, store.ids),
    )
    pointers = SimpleNamespace(pointers=torch.full((512,), -1, dtype=torch.int64))
    return Batch(core, store, pointers, vectors), head


def step(batch, name, computed, count):
    """One pass of one request; returns what each of its tokens was fed beside a mixture."""
    batch.begin([name], np.array([computed]), np.array([count]))
    Calls.count += 1
    rows = []
    for place in range(count):
        entry = int(batch.embedding.pointers[place])
        row = 0 if entry < 0 else int(batch.vectors.rows[entry])
        rows.append(float(batch.vectors.vectors[row, 0]) if row else None)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(computed)) * 3
    batch.commit(batch.decide(logits).argmax(dim=1))
    return rows


def think(batch, name, methods, steps, vectors):
    """A request's first steps, one token a pass."""
    batch.admit(name, request_of(*methods), [1], 1, vectors)
    return [step(batch, name, number, 1)[0] for number in range(steps)]


def test_a_preempted_request_is_fed_its_vectors_again():
    batch, _ = make()
    fed = think(batch, "a", [COCONUT], 9, 5)
    # The prompt's token, the five latent steps' hidden states, then tokens.
    assert fed == [None, 1.0, 2.0, 3.0, 4.0, 5.0, None, None, None]
    batch.preempt("a")
    batch.resume("a", 9)
    assert step(batch, "a", 0, 10) == [*fed, None]
    batch.finish(["a"])
    assert batch.vectors.in_use == 0
    assert batch.store.pages_in_use == 0


def test_tokens_that_are_taken_back_write_their_vectors_again():
    batch, head = make()
    fed = think(batch, "a", [COCONUT], 4, 5)
    batch.preempt("a")
    batch.resume("a", 2)
    assert step(batch, "a", 0, 3) == fed[:3]
    assert step(batch, "a", 3, 1) == [float(head.calls - 1)]


def test_without_room_a_request_goes_on_and_a_replay_ends_it():
    batch, _ = make(capacity=7)
    think(batch, "a", [COCONUT], 1, 5)
    assert think(batch, "b", [COCONUT], 4, 5)[1:3] == [2.0, 3.0]
    assert batch.vectors.in_use == 5
    batch.preempt("b")
    batch.resume("b", 4)
    step(batch, "b", 0, 5)
    assert batch.take_failed() == {"b": FORGOTTEN}


@pytest.mark.parametrize("clean", [True, False])
def test_a_page_and_a_slot_that_are_used_again_add_nothing(clean, monkeypatch):
    batch, _ = make(slots=1)
    if not clean:
        monkeypatch.setattr(VectorStore, "_clean", lambda self, entries: None)
    think(batch, "a", [COCONUT], 4, 5)
    batch.finish(["a"])
    think(batch, "b", [NOISY], 6, 0)
    batch.finish(["b"])
    think(batch, "c", [SOFT], 3, 0)
    entries = batch.store.entries(np.zeros(6, dtype=np.int64), np.arange(6))
    left = bool(batch.vectors.rows[entries].any()) or bool(batch.vectors.scale[entries].any())
    assert left is not clean


def test_extents_are_taken_apart_and_joined_again():
    batch, _ = make(capacity=20)
    store, generator = batch.vectors, np.random.default_rng(0)
    for number in range(300):
        held = {name: extent for name, extent in store._extents.items() if extent}
        if held and generator.random() < 0.5:
            store.finish(str(generator.choice(list(held))))
        else:
            store.admit(str(number), int(generator.integers(1, 9)))
        extents = [extent for extent in store._extents.values() if extent]
        rows = [row for first, size in extents for row in range(first, first + size)]
        assert len(rows) == len(set(rows)) == store.in_use <= 20
        assert all(4 <= row < 24 for row in rows)
    for name in list(store._extents):
        store.finish(name)
    store.admit("all", 20)
    store.admit("more", 1)
    assert store._extents["all"] == (4, 20)
    assert store._extents["more"] is None


def test_the_head_is_looked_at_once_and_only_for_those_who_ask():
    batch, head = make()
    think(batch, "soft", [SOFT], 2, 0)
    assert head.wanted == 0
    think(batch, "a", [COCONUT], 1, 5)
    assert head.wanted == 1
    # vLLM's: the first call of a pass, not those of prompt log-probabilities behind it
    processor = nn.Identity()
    processor.forward = lambda head, rows: rows
    watch = HeadInput(processor, nn.Linear(HIDDEN, VOCAB), HIDDEN)
    processor(None, torch.zeros(2, HIDDEN))
    watch.arm(2)
    with pytest.raises(RuntimeError, match="got none at the model's head"):
        watch.rows()
    first, later = torch.ones(2, HIDDEN), torch.zeros(2, HIDDEN)
    processor(None, first)
    processor(None, later)
    assert watch.rows() is first
    watch.arm(3)
    processor(None, first)
    with pytest.raises(RuntimeError, match="got 2 rows"):
        watch.rows()
    assert watch.weight() is None


def test_what_would_not_fit_is_refused_with_its_number():
    full = {"method": "lead", "mixture": "full", "first": None, "leave": None}
    settings = Settings(vectors_mib=10 * vector_bytes(HIDDEN) / 2**20)
    for methods, most, wanted in (([COCONUT], 100, 5), ([full], 10, 10), ([SOFT], 100, 0)):
        request = request_of(*methods)
        assert vectors_of(request, most) == wanted
        check_vectors(request, most, settings, HIDDEN, 2)
    with pytest.raises(SpecError, match=r"lead.mixture: got 'full'.*at most 10 vectors.*fed 11"):
        check_vectors(request_of(full), 11, settings, HIDDEN, 1)
    # Each block of thinking has its own steps, and nobody knows how many blocks there will be.
    blocks = request_of(COCONUT, counted="block")
    assert vectors_of(blocks, 100) == 100
    with pytest.raises(SpecError, match=r"coconut.method"):
        check_vectors(blocks, 100, settings, HIDDEN, 1)


def test_the_published_matrix_is_refused_on_several_ranks():
    published = request_of({"method": "latent_mas", "profile": "published"})
    check_vectors(published, 100, Settings(), HIDDEN, 1)
    with pytest.raises(SpecError, match=r"quirks.precision: got 'float32'.*2 tensor-parallel"):
        check_vectors(published, 100, Settings(), HIDDEN, 2)
    check_vectors(request_of({"method": "latent_mas"}), 100, Settings(), HIDDEN, 2)


def test_nothing_is_kept_where_no_method_may_need_it():
    assert allows_vectors(Settings())
    assert allows_vectors(Settings(allow=("soft_thinking", "coconut")))
    assert not allows_vectors(Settings(allow=("soft_thinking", "gumbel_noise")))


def served(dtype=torch.float32, scale=2.0, weight=True, **settings):
    """Vectors of a table, whose head has the same rows or is quantised."""
    generator = torch.Generator().manual_seed(1)
    table = nn.Module()
    table.weight = nn.Parameter(torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype))
    table.shard_indices = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=VOCAB)
    head = Head()
    head.weight = lambda: table.weight.detach() if weight else None
    return ServedVectors(table, lambda tensor: tensor, head, scale, VOCAB, **settings), table


def test_what_a_model_scales_behind_its_table_is_taken_out_before():
    """What reaches the first layer is ``scale`` times what is lent."""
    source, table = served(scale=2.0)
    source.arm(3)
    assert (2 * source.hidden()).equal(torch.ones(3, HIDDEN))
    source.prepare(request_of({"method": "latent_mas"}))
    matrix, norm = source.alignment()
    # A tied head's rows are the table's: the map is the table's scale, nearly.
    torch.testing.assert_close(matrix, 2 * torch.eye(HIDDEN), rtol=0, atol=1e-4)
    torch.testing.assert_close(norm, table.weight.norm(dim=1).mean())


def test_what_a_model_cannot_lend_is_refused_and_nothing_else_is():
    everything = Need.OF_ENGINE
    assert served()[0].hosts == everything
    # Whose scale is not known, and whose tokens are looked up in a second table.
    assert served(scale=None)[0].hosts == everything & ~Need.HIDDEN_STATE
    assert served(alone=False)[0].hosts == Need.EMBEDDING_NOISE
    quantised, _ = served(weight=False)
    quantised.prepare(request_of(COCONUT))
    with pytest.raises(SpecError, match=r"quirks.realign: got True.*quantised"):
        quantised.prepare(request_of({"method": "latent_mas"}))
    quantised.prepare(request_of({"method": "latent_mas", "quirks": {"realign": False}}))


def test_noise_that_float16_cannot_hold_is_refused():
    loud = request_of({"method": "soft_tokens", "noise_scale": 100, "max_entries": 8})
    served(torch.float16)[0].prepare(loud)
    for dtype in (torch.float16, torch.bfloat16):
        source, table = served(dtype)
        with torch.no_grad():
            table.weight.mul_(100)
        if dtype == torch.bfloat16:
            source.prepare(loud)
            continue
        with pytest.raises(SpecError, match=r"soft_tokens.noise_scale: got 100.*float16"):
            source.prepare(loud)


def test_a_table_that_is_whole_on_every_rank_is_not_summed():
    """Gemma 3's on SGLang: its head may be a shard all the same."""

    def never(tensor):
        raise AssertionError("summed over ranks")

    table, head = nn.Embedding(VOCAB, HIDDEN), Head()
    head.weight = lambda: table.weight.detach()
    source = ServedVectors(table, never, head, 1.0, VOCAB)
    torch.testing.assert_close(source.rms(), (table.weight**2).mean().sqrt())
    logits = torch.randn(2, VOCAB)
    dense = source.dense(logits, torch.ones(2, dtype=torch.bool), torch.ones(2))
    torch.testing.assert_close(dense, logits.softmax(dim=1) @ table.weight)
    source.prepare(request_of({"method": "latent_mas"}))
    head.weight = lambda: table.weight.detach()[: VOCAB // 2]
    source = ServedVectors(table, never, head, 1.0, VOCAB)
    with pytest.raises(SpecError, match=r"quirks.realign: got True.*cut another way"):
        source.prepare(request_of({"method": "latent_mas"}))
