"""What decoder layers of an engine leave: of which rows, at which tokens, and when nobody asks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from built_in import Core, bind
from layered_model import HIDDEN, LAYERS, VOCAB, Layer, Model
from operator_files import predictor
from safetensors.torch import save_file

from tokenlens.core.layer_access import ModelShape
from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.methods import files
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.layer_files import check_seats, reads_layers
from tokenlens.serving.layer_tap import LayerTap
from tokenlens.serving.served_layers import ServedLayers
from tokenlens.serving.settings import Settings
from tokenlens.serving.store import PAGE, ConceptStore, entry_bytes
from tokenlens.spec import parse_spec
from tokenlens.spec.needs import Need

SHAPE = ModelShape(HIDDEN, LAYERS)


class Head:
    """A head that is shown rows of hundreds."""

    width = HIDDEN

    def __init__(self):
        self.wanted = 0

    def weight(self):
        return None

    def arm(self, num_rows):
        self.wanted = num_rows

    def rows(self):
        return torch.full((self.wanted, HIDDEN), 100.0)


class Reads:
    """A request's needs and nothing else, to a tap."""

    def __init__(self, reads=True):
        self.needs = Need.LAYER_STATES if reads else Need.NOTHING


def make(splits=True):
    model = Model(splits)
    tap = LayerTap(
        list(model.model.layers), SHAPE, Head(), torch.float32, torch.device("cpu"),
        max_rows=4, max_slots=3,
    )  # fmt: skip
    return model, tap


def upload(values):
    return torch.from_numpy(np.ascontiguousarray(values))


@pytest.mark.parametrize("splits", [True, False])
def test_the_last_token_of_each_row_that_asks_is_read_at_every_layer(splits):
    model, tap = make(splits)
    tap.seat(0, Reads())
    tap.seat(1, Reads(reads=False))
    tap.seat(2, Reads())
    core = SimpleNamespace(live_needs=Need.LAYER_STATES)
    tap.begin(core, 3)
    slots, scheduled = np.array([2, 1, 0]), np.array([3, 1, 2])
    tap.write(upload, slots, np.array([True, True, True]), scheduled)
    states = torch.arange(6.0)[:, None].expand(6, HIDDEN).clone()
    out = model(states)
    assert torch.equal(out, states + LAYERS)
    found = tap.states()
    assert found.shape == (3, LAYERS + 1, HIDDEN)
    # Each layer adds one; what goes into the head is the head's.
    assert found[0, :, 0].tolist() == [2.0, 3.0, 4.0, 100.0]
    assert found[2, :, 0].tolist() == [5.0, 6.0, 7.0, 100.0]
    assert found[1, :-1].eq(0).all()
    assert not tap.was_missed
    # A chunk of a prompt decides nothing, and its row is not read.
    tap.begin(core, 2)
    tap.write(upload, np.array([2, 0]), np.array([False, True]), np.array([1, 1]))
    assert tap.was_missed
    model(torch.full((2, HIDDEN), 50.0))
    assert tap.states()[:, 0, 0].tolist() == [2.0, 50.0]


def test_nothing_is_kept_where_nobody_asks():
    model, tap = make()
    tap.seat(0, Reads(reads=False))
    tap.begin(SimpleNamespace(live_needs=Need.NOTHING), 1)
    tap.write(upload, np.array([0]), np.array([True]), np.array([1]))
    model(torch.ones(1, HIDDEN))
    assert tap.kept.eq(0).all()
    assert not tap.was_missed
    assert type(model.model.layers[-1]) is Layer


def test_a_model_of_one_layer_is_refused():
    with pytest.raises(UnsupportedError, match="one decoder layer"):
        LayerTap(
            [Layer(True)], SHAPE, Head(), torch.float32, torch.device("cpu"),
            max_rows=4, max_slots=3,
        )  # fmt: skip


def test_layers_are_read_only_where_a_file_is_for_it(tmp_path):
    save_file({"vector": torch.ones(HIDDEN)}, tmp_path / "vector", {"layer": "1"})
    save_file(predictor(HIDDEN, VOCAB), tmp_path / "predictor", {"heads": "2"})
    paths = {f"tap-{name}": str(tmp_path / name) for name in ("vector", "predictor")}
    files.allow(paths)
    assert reads_layers(Settings(files=paths))
    assert not reads_layers(Settings(files={"tap-vector": paths["tap-vector"]}))
    assert not reads_layers(Settings(files=paths, allow=("east",)))
    assert not reads_layers(Settings())
    request = SimpleNamespace(needs=Need.LAYER_STATES, methods=("budget_guidance",))
    check_seats(request, Settings(files=paths), torch.float32)
    with pytest.raises(SpecError, match=r"methods: got 'budget_guidance'.*reads no layers"):
        check_seats(request, Settings(), torch.float32)


def test_a_prompt_is_looked_at_in_the_step_that_decides_its_first_token(tmp_path):
    probe = {"w1": (3, HIDDEN), "b1": (3,), "w2": (3, 3), "b2": (3,)}
    save_file({name: torch.ones(shape) for name, shape in probe.items()}, tmp_path / "probe")
    files.allow({"tap-probe": tmp_path / "probe"})
    layers = ServedLayers(None, Head())
    assert layers.hosts == Need.PROMPT_STATE
    store = ConceptStore(3, 1, PAGE * entry_bytes(1), 400, torch.device("cpu"))
    core = Core(max_slots=3, vocab_size=VOCAB, rewind_steps=REWIND_STEPS, layers=layers)
    batch = Batch(core, store, None, None, layers)
    spec = parse_spec(
        {
            "methods": [{"method": "diffadapt", "file": "tap-probe"}],
            "phase": {"think_start": [1], "think_end": [2]},
        }
    )
    request = bind(spec, tokenizer=None, vocab_size=VOCAB, shape=SHAPE)
    seen = []
    for name, rows in (
        ("a", {"a": (0, 2)}),
        (None, {"a": (2, 2)}),
        ("b", {"a": (4, 1), "b": (0, 4)}),
        (None, {"a": (5, 1), "b": (4, 1)}),
    ):
        if name is not None:
            batch.admit(name, request, [1, 3, 4, 5], 4)
        computed, count = (np.array(one) for one in zip(*rows.values()))
        batch.begin(list(rows), computed, count)
        state = layers.prompt_state()
        seen.append(None if state is None else len(state))
        batch.commit(batch.decide(torch.randn(len(rows), VOCAB)).argmax(dim=1))
    assert seen == [None, 1, 2, None]
