"""Steering behind a decoder layer: what is added, where, and that nothing else changes."""

import gc
import threading

import pytest
import torch
from hf_models import PROMPTS, START, TinyModel, batch, new_tokens
from safetensors.torch import save_file
from transformers import CompileConfig

from tokenlens.errors import UnsupportedError
from tokenlens.hf import generate_kwargs, layers, traces
from tokenlens.methods import files
from tokenlens.spec import SpecError

STEPS = 14
TOLERANCE = 2e-4
LAYERS = 2


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Two vectors, one for each layer; files of an operator."""
    folder = tmp_path_factory.mktemp("vectors")
    generator = torch.Generator().manual_seed(3)
    found = {}
    for layer in (1, 2):
        path = folder / f"layer-{layer}.safetensors"
        found[f"v{layer}"] = vector = torch.randn(32, generator=generator)
        save_file({"vector": vector}, path, {"layer": str(layer)})
        files.allow({f"v{layer}": path})
    return found


def spec_of(subject, *methods):
    return {
        "methods": list(methods),
        "phase": {"think_start": [START], "think_end": [subject.end]},
        "trace": {"level": "full"},
    }


def east(layer=1, beta=0.7, **more):
    return {"method": "east", "file": f"v{layer}", "beta": beta, **more}


def run(subject, specs, **settings):
    kwargs = generate_kwargs(subject.model, None, specs)
    output = subject.generate(steps=STEPS, **kwargs, **settings)
    return new_tokens(output), torch.stack(output.logits, dim=1), traces(kwargs)


def plain(subject, **settings):
    output = subject.generate(steps=STEPS, **settings)
    return new_tokens(output), torch.stack(output.logits, dim=1)


@torch.no_grad()
def replayed(subject, prompt, tokens, vector, layer, betas):
    """Logits of one sequence, with a hook that adds at each position what is given."""
    ids = torch.tensor([[*prompt, *tokens]])
    added = torch.zeros(ids.shape[1], len(vector))
    for place, beta in enumerate(betas):
        added[len(prompt) + place] = beta * vector

    def hook(module, args, output):
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added

    handle = layers.decoder_layers(subject.model)[layer - 1].register_forward_hook(hook)
    try:
        return subject.model(ids, use_cache=False).logits[0, len(prompt) - 1 :]
    finally:
        handle.remove()


def shifts(trace, where, beta):
    """What each generated token's position is shifted by, of the phases after the tokens."""
    phases = [step.phase for step in trace.steps[1:]]
    return [beta if where in ("all", phase) else 0.0 for phase in phases]


@pytest.mark.parametrize("where", ["thinking", "answer", "all"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_the_vector_is_added_behind_its_layer_at_generated_positions(
    subjects, vectors, name, where
):
    subject = subjects(name)
    before = plain(subject)[1]
    for layer in range(1, LAYERS + 1):
        ends = [{"method": "thinking_budget", "budget": 5}] if where == "answer" else []
        tokens, logits, found = run(subject, spec_of(subject, east(layer, where=where), *ends))
        moved = 0
        for row, (prompt, trace) in enumerate(zip(PROMPTS, found, strict=True)):
            betas = shifts(trace, where, 0.7)
            moved += sum(beta != 0 for beta in betas)
            # The last token's phase is counted, and no step shows it.
            counted = trace.counts.shifted_steps
            assert 0 <= counted - sum(beta != 0 for beta in betas) <= 1
            wanted = replayed(
                subject, prompt, tokens[row].tolist()[:-1], vectors[f"v{layer}"], layer, betas
            )
            torch.testing.assert_close(logits[row], wanted, rtol=0, atol=TOLERANCE)
        assert moved > 3
        assert (logits - before).abs().max() > 0.05


def test_rows_that_asked_for_nothing_keep_their_bits(subject, vectors):
    tokens, logits = plain(subject)
    nothing = {"methods": []}
    mixed = [nothing, spec_of(subject, east(1)), spec_of(subject, east(2, beta=0.0))]
    theirs, found, _ = run(subject, mixed)
    for row in (0, 2):
        assert torch.equal(theirs[row], tokens[row])
        assert torch.equal(found[row], logits[row])
    assert not torch.equal(found[1], logits[1])
    # What a row is does not depend on who shares its batch.
    alone = run(subject, [spec_of(subject, east(1)) for _ in PROMPTS])[1]
    torch.testing.assert_close(alone[1], found[1], rtol=0, atol=TOLERANCE)


def test_two_layers_in_one_batch(subject, vectors):
    specs = [
        spec_of(subject, east(layer, beta=beta)) for layer, beta in ((1, 0.7), (2, -0.5), (2, 1.1))
    ]
    tokens, logits, found = run(subject, specs)
    for row, (prompt, trace) in enumerate(zip(PROMPTS, found, strict=True)):
        layer, beta = ((1, 0.7), (2, -0.5), (2, 1.1))[row]
        wanted = replayed(
            subject, prompt, tokens[row].tolist()[:-1], vectors[f"v{layer}"], layer,
            shifts(trace, "thinking", beta),
        )  # fmt: skip
        torch.testing.assert_close(logits[row], wanted, rtol=0, atol=TOLERANCE)


def test_it_goes_with_soft_thinking(subject, vectors):
    soft = {"method": "soft_thinking", "max_entries": 1, "top_k": 1}
    # One entry is the token itself: the same as without.
    greedy = run(subject, spec_of(subject, east(1)))[0]
    assert torch.equal(run(subject, spec_of(subject, soft, east(1)))[0], greedy)


def compiled(backend):
    config = CompileConfig(backend=backend, fullgraph=False, mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.*")
@pytest.mark.parametrize("first", ["plain", "steered"])
def test_a_static_cache_compiled_and_not(vectors, first):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    own = TinyModel("qwen3")
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    spec = spec_of(own, east(1))
    eager, before = run(own, spec), plain(own)
    static = run(own, spec, cache_implementation="static")
    torch.testing.assert_close(static[1], eager[1], rtol=0, atol=TOLERANCE)
    settings = compiled(backend)
    # A graph that was made before must not serve the other.
    order = ["plain", "steered"] if first == "plain" else ["steered", "plain"]
    for kind in [*order, *order]:
        found = (run(own, spec, **settings) if kind == "steered" else plain(own, **settings))[:2]
        wanted = eager if kind == "steered" else before
        assert torch.equal(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=TOLERANCE)
    assert len(graphs) == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_a_hook_would_never_fire(vectors, monkeypatch):
    """What the subclass is for: a hook that comes after the graph changes nothing."""
    torch._dynamo.reset()
    own = TinyModel("qwen3")
    settings = compiled(lambda graph, example_inputs: graph.forward)
    before = plain(own, **settings)
    monkeypatch.setattr(layers.Layers, "arm", hooked)
    spec = spec_of(own, east(1))
    assert torch.equal(run(own, spec, **settings)[1], before[1])
    torch._dynamo.reset()


def hooked(self, core, here=None):
    for layer, (vectors, _) in self._shifts.items():
        shift = core.table.column(layers.SHIFT)[: len(vectors), None] * vectors
        self._layers[layer - 1].register_forward_hook(lambda m, a, out, s=shift: out + s[:, None])


def assert_clean(subject):
    for module in subject.model.modules():
        assert layers.SEATS not in module.__dict__
        assert type(module).__mro__[1].__name__ != type(module).__name__


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}])
def test_an_exception_that_is_kept_keeps_nothing_on_the_model(vectors, settings):
    own = TinyModel("qwen3")
    ids = batch(PROMPTS)
    before = own.model(**ids).logits
    calls = []

    def raising(*args):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("planned")

    handle = own.model.get_output_embeddings().register_forward_hook(raising)
    with pytest.raises(RuntimeError, match="planned") as kept:
        run(own, spec_of(own, east(1, where="all")), **settings)
    handle.remove()
    if not settings:
        assert_clean(own)
    # One token a row, which is what a decode step looks like
    row = {key: value[:, -1:] for key, value in ids.items()}
    again = TinyModel("qwen3").model(**row).logits
    assert torch.equal(own.model(**row).logits, again)
    assert torch.equal(own.model(**ids).logits, before)
    del kept
    gc.collect()
    assert_clean(own)


def test_another_thread_is_not_shifted(vectors):
    own = TinyModel("qwen3")
    before = plain(own)
    inside, done, results = threading.Event(), threading.Event(), []

    def steer():
        def wait(*args):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                done.wait(20)

        handle = layers.decoder_layers(own.model)[1].register_forward_pre_hook(wait)
        results.append(run(own, spec_of(own, east(1, where="all"))))
        handle.remove()

    thread = threading.Thread(target=steer)
    thread.start()
    assert inside.wait(20)
    try:
        assert torch.equal(plain(own)[1], before[1])
    finally:
        done.set()
        thread.join()
    assert not torch.equal(results[0][1], before[1])


def test_a_shift_that_the_dtype_cannot_hold_is_refused(vectors, tmp_path):
    own = TinyModel("qwen3")
    save_file({"vector": torch.full((32,), 3e4)}, tmp_path / "v.safetensors")
    files.allow({"huge": tmp_path / "v.safetensors"})
    spec = spec_of(own, {"method": "east", "file": "huge", "layer": 1})
    run(own, spec)
    own.model.half()
    with pytest.raises(SpecError, match=r"east\.beta.*float16"):
        run(own, spec)
    assert_clean(own)


def test_a_sum_that_is_not_finite_is_not_made():
    states = torch.full((2, 1, 4), 6e4, dtype=torch.float16)
    moved = layers.shifted(states, torch.full((2, 4), 1e4), torch.tensor([True, True]))
    assert torch.equal(moved, states)
    moved = layers.shifted(states, torch.full((2, 4), -10016.0), torch.tensor([True, False]))
    assert moved[:, 0, 0].tolist() == [49984.0, 60000.0]


@pytest.mark.parametrize("shape", [(4, 2, 1, 8), (2, 8)])
def test_layers_of_another_form_are_refused(shape):
    seat = layers.Seat()
    seat.shift, seat.active = torch.ones(2, 8), torch.ones(2, dtype=torch.bool)
    with pytest.raises(UnsupportedError, match=f"leaves {len(shape)} dimensions"):
        seat.passed(None, torch.zeros(shape))


def wrong_files(folder):
    """Files, by what is wrong with them, and what the error names."""
    good = torch.ones(32)
    bad = good.clone()
    bad[7] = torch.nan
    made = {
        "nan": ({"vector": bad}, {"layer": "1"}, "not finite: vector"),
        "infinite": ({"vector": bad.nan_to_num(torch.inf)}, {"layer": "1"}, "not finite"),
        "ints": ({"vector": good.long()}, {"layer": "1"}, "floating-point"),
    }
    for name, (tensors, about, words) in made.items():
        if name == "infinite":
            tensors["vector"][7] = torch.inf
        save_file(tensors, folder / name, about)
        yield name, words
    torch.save({"vector": good}, folder / "pickle")
    yield "pickle", "safetensors"
    (folder / "empty").write_bytes(b"")
    yield "empty", "safetensors"
    yield "missing", "safetensors"
    (folder / "folder").mkdir()
    yield "folder", "safetensors"


def test_a_wrong_file_is_an_error_when_it_is_allowed(subject, tmp_path):
    for name, words in wrong_files(tmp_path):
        with pytest.raises(SpecError, match=words) as caught:
            generate_kwargs(subject.model, None, "soft", files={"wrong": tmp_path / name})
        assert "files.wrong" in str(caught.value)
    with pytest.raises(SpecError, match="a file that the operator allows"):
        generate_kwargs(subject.model, None, spec_of(subject, {"method": "east", "file": "wrong"}))


WRONG = {
    "width": ({"vector": torch.ones(31)}, {"layer": "1"}, {}, r"east\.file.*vector: \[32\]"),
    "shape": ({"vector": torch.ones(1, 32)}, {"layer": "1"}, {}, r"east\.file"),
    "name": ({"steer": torch.ones(32)}, {"layer": "1"}, {}, r"east\.file"),
    "above": ({"vector": torch.ones(32)}, {"layer": "3"}, {}, r"east\.layer.*1 to 2"),
    "below": ({"vector": torch.ones(32)}, {"layer": "0"}, {}, r"east\.layer.*1 to 2"),
    "words": ({"vector": torch.ones(32)}, {"layer": "two"}, {}, r"east\.file"),
    "none": ({"vector": torch.ones(32)}, {}, {}, r"east\.layer"),
    "other": ({"vector": torch.ones(32)}, {"layer": "1"}, {"layer": 2}, r"east\.layer"),
    "infinite": ({"vector": torch.ones(32) * 3e38}, {"layer": "1"}, {"beta": 9.0}, r"east\.beta"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(subject, tmp_path, name):
    tensors, about, fields, words = WRONG[name]
    save_file(tensors, tmp_path / "v", about or None)
    files.allow({name: tmp_path / "v"})
    spec = spec_of(subject, {"method": "east", "file": name, **fields})
    with pytest.raises(SpecError, match=words):
        generate_kwargs(subject.model, None, spec)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", "a" * 65, ".x", "a\n", 7, None])
def test_a_spec_names_no_path(subject, name):
    with pytest.raises(SpecError, match=r"methods\[0\]\.file"):
        generate_kwargs(subject.model, None, spec_of(subject, {"method": "east", "file": name}))


def test_a_file_that_is_allowed_again_is_the_new_one(subject, tmp_path):
    path, spec = tmp_path / "v", spec_of(subject, {"method": "east", "file": "again", "beta": 1.0})
    found = []
    for scale in (0.5, 2.0, 0.5):
        save_file({"vector": torch.linspace(-1, 1, 32) * scale}, path, {"layer": "1"})
        kwargs = generate_kwargs(subject.model, None, spec, files={"again": path})
        found.append(torch.stack(subject.generate(steps=STEPS, **kwargs).logits, dim=1))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_the_environment_allows_files(subject, tmp_path, monkeypatch):
    save_file({"vector": torch.ones(32)}, tmp_path / "v", {"layer": "1"})
    spec = spec_of(subject, {"method": "east", "file": "by-environment"})
    with pytest.raises(SpecError, match="by-environment"):
        generate_kwargs(subject.model, None, spec)
    for wrong in ("[]", "{", '{"by-environment": 1}', '{"../x": "y"}'):
        monkeypatch.setenv("TOKENLENS_FILES", wrong)
        with pytest.raises(SpecError, match=r"files|FILES"):
            generate_kwargs(subject.model, None, spec)
    monkeypatch.setenv("TOKENLENS_FILES", f'{{"by-environment": "{tmp_path / "v"}"}}')
    assert generate_kwargs(subject.model, None, spec)


SOFT = 9


def soft_prompt(places, length=9):
    return [1, START, *[SOFT if i in places else 20 + i for i in range(length)]]


def softcotpp(variant=0, **more):
    return {"method": "softcotpp", "file": "rows", "placeholder": SOFT, "variant": variant, **more}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two sets of three rows."""
    path = tmp_path_factory.mktemp("rows") / "rows"
    found = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(8)) * 0.3
    save_file({"rows": found}, path)
    files.allow({"rows": path})
    return found


@torch.no_grad()
def with_rows(subject, prompt, tokens, rows):
    embed = subject.model.get_input_embeddings()
    x = embed(torch.tensor([[*prompt, *tokens]]))
    x[0, [i for i, token in enumerate(prompt) if token == SOFT]] = rows
    return subject.model(inputs_embeds=x, use_cache=False).logits[0, len(prompt) - 1 :]


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}])
def test_rows_of_a_file_stand_in_the_prompt(subjects, rows, vectors, name, settings):
    subject = subjects(name)
    prompts = [soft_prompt((2, 3, 4)), soft_prompt((0, 5, 8), length=12), [1, START, 30]]
    specs = [
        spec_of(subject, softcotpp()),
        spec_of(subject, softcotpp(1), east(1)),
        {"methods": []},
    ]
    plain = subject.generate(prompts, steps=STEPS, **settings)
    kwargs = generate_kwargs(subject.model, None, specs)
    output = subject.generate(prompts, steps=STEPS, **kwargs, **settings)
    logits, tokens = torch.stack(output.logits, dim=1), new_tokens(output, prompts)
    wanted = with_rows(subject, prompts[0], tokens[0].tolist()[:-1], rows[0])
    torch.testing.assert_close(logits[0], wanted, rtol=0, atol=TOLERANCE)
    # Of the other set the first logits, before anything is steered.
    first = with_rows(subject, prompts[1], [], rows[1])[0]
    torch.testing.assert_close(logits[1, 0], first, rtol=0, atol=TOLERANCE)
    assert torch.equal(logits[2], torch.stack(plain.logits, dim=1)[2])
    assert (logits[0] - torch.stack(plain.logits, dim=1)[0]).abs().max() > 0.05
    assert_clean(subject)


@pytest.mark.parametrize("places", [(), (1, 2), (1, 2, 3, 4)])
def test_a_prompt_has_as_many_placeholders_as_there_are_rows(subject, rows, places):
    kwargs = generate_kwargs(subject.model, None, spec_of(subject, softcotpp()))
    with pytest.raises(SpecError, match=r"softcotpp\.placeholder.*3"):
        subject.generate([soft_prompt(places)], steps=2, **kwargs)
    assert_clean(subject)


@pytest.mark.parametrize(
    ("tensors", "fields", "words"),
    [
        ({"rows": torch.ones(2, 3, 31)}, {}, r"softcotpp\.file"),
        ({"rows": torch.ones(3)}, {}, r"softcotpp\.file"),
        ({"rows": torch.ones(0, 32)}, {}, r"softcotpp\.file.*no rows"),
        ({"vector": torch.ones(3, 32)}, {}, r"softcotpp\.file"),
        ({"rows": torch.ones(2, 3, 32)}, {"variant": 2}, r"softcotpp\.variant.*0 to 1"),
        ({"rows": torch.ones(3, 32)}, {"variant": 1}, r"softcotpp\.variant.*0 to 0"),
        ({"rows": torch.ones(3, 32)}, {"placeholder": 5000}, r"softcotpp\.placeholder"),
    ],
)
def test_rows_that_do_not_fit_are_refused(subject, tmp_path, tensors, fields, words):
    save_file(tensors, tmp_path / "f")
    files.allow({"wrong-rows": tmp_path / "f"})
    with pytest.raises(SpecError, match=words):
        generate_kwargs(
            subject.model, None, spec_of(subject, softcotpp(**{"file": "wrong-rows", **fields}))
        )
