"""A static cache whose decode step ``generate()`` compiles: two graphs, no breaks, same tokens."""

import pytest
import torch
from hf_models import PROMPTS, TinyModel, new_tokens
from transformers import CompileConfig

from tokenlens.hf import generate_kwargs

pytestmark = [
    # torch's tracer touches deprecated names of its own modules while it looks at them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
]


@pytest.fixture
def graphs():
    """The graphs that were compiled so far."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield []
    torch._dynamo.reset()


@pytest.fixture
def own():
    """A subject of the test's own: its model keeps what was compiled."""
    return TinyModel("qwen3")


def compiled(graphs):
    # A function: generate() copies its settings deeply, and an object would count in the copy.
    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return settings_for(backend)


def settings_for(backend):
    config = CompileConfig(backend=backend, fullgraph=False, mode=None)
    # The way of transformers' own tests to compile on a CPU.
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def breaks():
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def test_two_graphs_and_no_breaks(own, graphs):
    expected = [own.reference(prompt).tokens for prompt in PROMPTS]
    plain = own.generate()
    settings = compiled(graphs)
    kwargs = generate_kwargs(own.model, None, own.spec())

    before = own.generate(**settings)
    assert len(graphs) == 1, "a plain run compiles the graph that takes ids"
    soft = own.generate(**kwargs, **settings)
    assert len(graphs) == 2, "a soft run adds the graph that takes embeddings"
    again = own.generate(**kwargs, **settings)
    after = own.generate(**settings)
    assert len(graphs) == 2
    assert breaks() == 0

    assert new_tokens(soft).tolist() == expected
    assert torch.equal(again.sequences, soft.sequences)
    assert torch.equal(before.sequences, plain.sequences)
    assert torch.equal(after.sequences, plain.sequences)


def test_soft_run_first(own, graphs):
    plain = own.generate()
    settings = compiled(graphs)
    soft = own.generate(**generate_kwargs(own.model, None, own.spec()), **settings)
    after = own.generate(**settings)
    assert new_tokens(soft).tolist() == [own.reference(prompt).tokens for prompt in PROMPTS]
    assert torch.equal(after.sequences, plain.sequences)
    assert len(graphs) == 2
    assert breaks() == 0


def test_with_the_backend_that_differentiates(own, graphs):
    settings = settings_for("aot_eager")
    soft = own.generate(**generate_kwargs(own.model, None, own.spec()), **settings)
    assert new_tokens(soft).tolist() == [own.reference(prompt).tokens for prompt in PROMPTS]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert breaks() == 0
