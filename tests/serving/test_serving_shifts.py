"""Vectors behind decoder layers of an engine: which rows, how often, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from built_in import Core, bind
from layered_model import HIDDEN, LAYERS, VOCAB, Layer, Model
from safetensors.torch import save_file
from torch import nn

from tokenlens.core.layer_access import ModelShape
from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.methods import files
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.embedding import Calls
from tokenlens.serving.layer_files import check_files, check_seats
from tokenlens.serving.layer_shifts import LayerShifts, decoder_layers
from tokenlens.serving.refusals import allows_shifts, is_own
from tokenlens.serving.served_layers import ServedLayers
from tokenlens.serving.settings import Settings
from tokenlens.serving.store import PAGE, ConceptStore, entry_bytes
from tokenlens.spec import parse_spec

SHAPE = ModelShape(HIDDEN, LAYERS)
FLOAT = torch.float32


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Two vectors of two layers, one of no layer, and no vector at all; read."""
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(1)
    made = {
        "s-one": {"layer": "1"},
        "s-two": {"layer": "2"},
        "s-free": {},
        "s-huge": {"layer": "2"},
    }
    for name, about in made.items():
        scale = 1000 if name == "s-huge" else 1
        made_of = torch.randn(HIDDEN, generator=generator) * scale
        save_file({"vector": made_of}, folder / name, about)
    save_file({"rows": torch.ones(2, HIDDEN)}, folder / "s-rows")
    found = Settings(files={name: str(folder / name) for name in (*made, "s-rows")})
    found.read_files()
    return found


def vector(name):
    return files.find("file", name).tensors["vector"]


def request_of(*methods):
    spec = parse_spec(
        {"methods": list(methods), "phase": {"think_start": [1], "think_end": [2]}, "seed": 3}
    )
    return bind(spec, tokenizer=None, vocab_size=VOCAB, shape=SHAPE)


def east(name="s-one", beta=0.5, **more):
    return {"method": "east", "file": name, "beta": beta, "where": "all", **more}


SOFT = {"method": "soft_thinking", "max_entries": 4}


class Engine:
    """A batch beside a model whose layers have seats; embeds with nothing, samples its arg-max."""

    def __init__(self, settings, splits=True, latent=True, slots=3, pages=16):
        self.model = Model(splits)
        width = 8 if latent else 1
        store = ConceptStore(
            slots, width, pages * PAGE * entry_bytes(width), 400, torch.device("cpu")
        )
        self.shifts = LayerShifts(
            list(self.model.model.layers), settings, FLOAT, torch.device("cpu"),
            entries=len(store.ids), max_slots=slots, max_tokens=512,
        )  # fmt: skip
        self.layers = ServedLayers(self.shifts, None)
        core = Core(
            max_slots=slots,
            vocab_size=VOCAB,
            rewind_steps=REWIND_STEPS,
            layers=self.layers,
            history=(store.weights, store.ids),
        )
        pointers = torch.full((512,), -1, dtype=torch.int64)
        embedding = SimpleNamespace(pointers=pointers) if latent else None
        self.batch = Batch(core, store, embedding, None, self.layers)

    def admit(self, name, *methods):
        self.batch.admit(name, request_of(*methods), [1], 1)

    def step(self, rows):
        """One pass, ``{name: (computed, count)}``; returns what was added at each token."""
        names = list(rows)
        computed, count = (np.array(one) for one in zip(*rows.values()))
        self.batch.begin(names, computed, count)
        Calls.count += 1
        states = torch.zeros(int(count.sum()), HIDDEN)
        left = self.model(states.clone())
        added = left - Plain(self.model)(states)
        logits = torch.stack(
            [
                torch.randn(VOCAB, generator=torch.Generator().manual_seed(int(at))) * 3
                for at in computed + count
            ]
        )
        self.batch.commit(self.batch.decide(logits).argmax(dim=1))
        return dict(zip(names, added.split(count.tolist())))


class Plain:
    """The same model without its seats."""

    def __init__(self, model):
        self.model = Model(model.splits)

    def __call__(self, states):
        return self.model(states)


def units(added, of):
    """How often a vector is in what was added at each token."""
    return [round(float(row @ of / (of @ of)), 4) for row in added]


@pytest.mark.parametrize("splits", [True, False])
def test_each_row_is_added_its_own_behind_its_own_layer(settings, splits):
    engine = Engine(settings, splits)
    engine.admit("a", east())
    engine.admit("b", east("s-two", -2.0))
    engine.admit("c", SOFT)
    first = engine.step({"a": (0, 1), "b": (0, 1), "c": (0, 1), "d": (0, 3)})
    assert not any(one.any() for one in first.values())
    added = engine.step({"a": (1, 1), "b": (1, 1), "c": (1, 1), "d": (3, 1)})
    assert torch.equal(added["c"], torch.zeros(1, HIDDEN))
    assert torch.equal(added["d"], torch.zeros(1, HIDDEN))
    torch.testing.assert_close(added["a"][0], 0.5 * vector("s-one"))
    torch.testing.assert_close(added["b"][0], -2.0 * vector("s-two"))


def test_only_layers_that_files_name_have_seats(settings):
    engine = Engine(settings)
    kinds = [type(layer) is Layer for layer in engine.model.model.layers]
    assert kinds == [False, False, True]
    assert engine.shifts.layers == (1, 2)


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("where", ["all", "thinking", "answer"])
def test_a_preempted_request_is_shifted_again_as_it_was(settings, latent, where):
    engine = Engine(settings, splits=False, latent=latent)
    engine.admit("a", east(where=where), {"method": "answer_now", "after": 5})
    seen = [engine.step({"a": (number, 1)})["a"] for number in range(12)]
    once = torch.cat(seen)
    betas = units(once, vector("s-one"))
    assert betas[0] == 0
    assert 0.5 in betas
    assert (where == "all") == (set(betas[1:]) == {0.5})
    # What the scheduler was told of the answer does not free what is shifted there.
    for number in range(1, 13):
        engine.batch.saw("a", number, number > 6, 0)
    engine.batch.preempt("a")
    engine.batch.resume("a", 12)
    again = [engine.step({"a": (0, 7)})["a"], engine.step({"a": (7, 6)})["a"]]
    assert torch.equal(torch.cat(again)[:12], once)
    engine.batch.finish(["a"])
    assert engine.batch.store.pages_in_use == 0
    engine.admit("b", SOFT if latent else {"method": "answer_now", "after": 5})
    assert not any(engine.step({"b": (number, 1)})["b"].any() for number in range(8))


def test_control_without_a_history_a_replay_is_not_shifted_as_it_was(settings, monkeypatch):
    monkeypatch.setattr(LayerShifts, "keep", lambda *args: None)
    engine = Engine(settings)
    engine.admit("a", east())
    assert not any(engine.step({"a": (number, 1)})["a"].any() for number in range(4))


def test_tokens_that_are_taken_back_are_shifted_as_their_successors(settings):
    engine = Engine(settings, splits=False)
    engine.admit("a", east(where="thinking"), {"method": "answer_now", "after": 3})
    for number in range(8):
        engine.step({"a": (number, 1)})
    engine.batch.preempt("a")
    engine.batch.resume("a", 6)
    again = units(engine.step({"a": (0, 7)})["a"], vector("s-one"))
    assert again == [0, 0.5, 0.5, 0.5, 0, 0, 0] or again[1] == 0.5


def test_a_request_that_loses_its_slot_is_shifted_again(settings):
    engine = Engine(settings, splits=False, slots=1)
    engine.admit("a", east())
    once = torch.cat([engine.step({"a": (number, 1)})["a"] for number in range(5)])
    engine.batch.preempt("a")
    engine.admit("b", east("s-two", 3.0))
    assert not engine.step({"b": (0, 1)})["b"].any()
    engine.batch.finish(["b"])
    engine.batch.resume("a", 5)
    again = engine.step({"a": (0, 6)})["a"]
    assert torch.equal(again[:5], once)


def test_mixtures_and_shifts_of_one_request_are_both_fed(settings):
    engine = Engine(settings, splits=False)
    engine.admit("a", SOFT, east())
    engine.admit("b", east())
    engine.step({"a": (0, 1), "b": (0, 1)})
    added = engine.step({"a": (1, 1), "b": (1, 1)})
    assert units(added["a"], vector("s-one")) == units(added["b"], vector("s-one")) == [0.5]
    pointers = engine.batch.embedding.pointers
    assert pointers[0] >= 0
    assert pointers[1] == -1


def test_a_sum_that_the_dtype_cannot_hold_is_not_made(settings):
    engine = Engine(settings)
    module = engine.model.model.layers[0]
    engine.shifts.places[:, :2] = torch.tensor([[0, 1], [0, 0], [1, 1]])
    engine.shifts.amounts[:2] = torch.tensor([1e6, 1.0])
    states = torch.full((2, HIDDEN), 6e4, dtype=torch.float16)
    left, residual = module(None, states, None)
    # The first would not be finite: it is what the layer left.
    assert torch.equal(left[0], torch.ones(HIDDEN, dtype=torch.float16))
    torch.testing.assert_close(left[1], (1 + vector("s-one")).half())
    assert torch.equal(residual, states)


def test_a_forward_pass_without_the_seats_is_found(settings):
    engine = Engine(settings)
    engine.admit("a", east())
    engine.step({"a": (0, 1)})
    engine.batch.begin(["a"], np.array([1]), np.array([1]))
    with pytest.raises(RuntimeError, match="shifts were lost"):
        engine.batch.decide(torch.randn(1, VOCAB))


def test_a_model_whose_layers_are_not_found_is_refused():
    model = Model()
    assert decoder_layers(model, 3, nn.Embedding) == list(model.model.layers)
    del model.model.layers[2]
    with pytest.raises(UnsupportedError, match="0 lists of 3 layers"):
        decoder_layers(model, 3, nn.Embedding)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (ModelShape(9, 3), r"files\.s-one.*vector: \[9\]"),
        (ModelShape(8, 1), r"files\.s-two.*1 to 1"),
    ],
)
def test_files_that_do_not_fit_the_model_end_a_start(settings, shape, words):
    with pytest.raises(SpecError, match=words):
        check_files(settings, shape)
    check_files(settings, SHAPE)


def test_a_vector_without_a_seat_is_refused(settings):
    check_seats(request_of(east()), settings, FLOAT)
    check_seats(request_of(SOFT), settings, FLOAT)
    with pytest.raises(SpecError, match=r"east\.file.*s-one behind layer 1"):
        check_seats(request_of(east("s-free", layer=1)), settings, FLOAT)
    with pytest.raises(SpecError, match=r"east\.file.*\(none\)"):
        check_seats(request_of(east()), Settings(), FLOAT)
    with pytest.raises(SpecError, match=r"east\.beta.*float16"):
        check_seats(request_of(east("s-huge", 9000.0)), settings, torch.float16)
    check_seats(request_of(east("s-huge", 9000.0)), settings, torch.bfloat16)


def test_who_may_be_shifted(settings):
    assert allows_shifts(settings)
    assert not allows_shifts(Settings())
    assert allows_shifts(settings.model_copy(update={"allow": ("east",)}))
    assert not allows_shifts(settings.model_copy(update={"allow": ("soft_thinking", "coconut")}))
    specs = {name: parse_spec({"methods": [one]}) for name, one in (("a", east()), ("b", SOFT))}
    assert all(is_own(spec) for spec in specs.values())
    assert not is_own(parse_spec({"methods": [{"method": "answer_now", "after": 3}]}))


@pytest.mark.parametrize(
    ("given", "words"),
    [({"../x": "a"}, "files"), ({"x": 3}, "files"), ({"x": "/nowhere.safetensors"}, r"files\.x")],
)
def test_wrong_files_are_errors_at_start(given, words):
    with pytest.raises(SpecError, match=words):
        Settings.of({"tokenlens": {"files": given}}).read_files()


def test_files_of_the_environment(settings, monkeypatch):
    monkeypatch.setenv("TOKENLENS_FILES", '{"env": "/a"}')
    assert Settings.of(None).files == {"env": "/a"}
    assert Settings.of({"tokenlens": {"files": {"x": "/b"}}}).files == {"x": "/b"}
