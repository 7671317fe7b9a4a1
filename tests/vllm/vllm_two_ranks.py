"""One of two ranks that share vLLM's vocabulary-parallel embedding; prints what went wrong."""

import os
import sys

import pytest
import torch
from torch import nn


def refuse_quantised(model):
    """Rows of a quantised table cannot be mixed: neither its method nor its type is taken."""
    from tokenlens.errors import EmbeddingError
    from tokenlens.serving.embedding import find_input_embedding
    from tokenlens.vllm.embedding import layout

    table = model.embed_tokens
    assert find_input_embedding(model, layout())[1] is table
    method, weight = table.quant_method, table.weight
    quantised = type("GGUFEmbeddingMethod", (), {})()
    packed = nn.Parameter(torch.zeros(100, 16, dtype=torch.uint8), requires_grad=False)
    for change, word in (
        ({"quant_method": quantised}, "GGUFEmbeddingMethod"),
        ({"weight": packed}, "torch.uint8"),
    ):
        for name, value in {"quant_method": method, "weight": weight, **change}.items():
            setattr(table, name, value)
        with pytest.raises(EmbeddingError, match=f"{word}.*not quantised"):
            find_input_embedding(model, layout())
    table.quant_method, table.weight = method, weight


def check_vectors(table, model, vectors, places):
    """Sums over shards are whole on each rank, and what entries add is added once."""
    from tokenlens.core.next_input import gaussian

    source, generator = vectors.source, torch.Generator().manual_seed(6)
    assert torch.allclose(source.rms(), (table**2).mean().sqrt())
    assert torch.allclose(source.alignment()[1], table.norm(dim=1).mean())
    logits = torch.randn(3, 200, generator=generator)
    dense = source.dense(logits, torch.ones(3, dtype=torch.bool), torch.full((3,), 2.0))
    assert torch.allclose(dense, (2 * logits).softmax(dim=1) @ table, atol=1e-5)
    ids = torch.zeros(12, dtype=torch.int64)
    before = model.embed_tokens(ids)
    vectors.vectors[6] = torch.randn(64, generator=generator)
    vectors.rows[2] = vectors.rows[3] = 6
    vectors.scale[3], vectors.seed[3], vectors.position[3] = 0.5, 7, 11
    expected = torch.zeros_like(before)
    expected[places[1:3]] = vectors.vectors[6]
    expected[places[2]] += 0.5 * gaussian(torch.tensor([7]), torch.tensor([11]), 64)[0]
    added = model.embed_tokens(ids) - before
    assert torch.allclose(added, expected, atol=1e-5), "vectors and noise"
    # With the guard switched off each rank adds them.
    model.embed_tokens.shard_indices.org_vocab_start_index = 0
    twice = model.embed_tokens(ids)[places[1]] - before[places[1]]
    assert (twice - expected[places[1]]).abs().max() > 0.1


def hide_avx512():
    """Make this CPU look to vLLM as if it had nothing beyond AVX2."""
    torch.cpu._is_avx512_supported = lambda: False
    torch.cpu._is_avx512_bf16_supported = lambda: False


def main(rank, port, instructions):
    """Embed a mixed stream of tokens on this rank's half of the table."""
    if instructions == "avx2":
        hide_avx512()
    # What vLLM's own worker tells its ranks; the communicator over shared memory reads the last.
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ["VLLM_DIST_IDENT"] = str(port)
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    from tokenlens.errors import EmbeddingError
    from tokenlens.serving.embedding import InputEmbedding
    from tokenlens.serving.engine_vectors import ServedVectors
    from tokenlens.serving.store import PAGE, ConceptStore, entry_bytes
    from tokenlens.serving.vectors import VectorStore
    from tokenlens.vllm.embedding import layout

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(2, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(2)
        # vLLM's library for AVX2 has no communicator over shared memory, the others do.
        assert hasattr(torch.ops._C, "init_shm_manager") == (instructions != "avx2")
        generator = torch.Generator().manual_seed(5)
        table = torch.randn(200, 64, generator=generator)
        model = nn.Module()
        model.embed_tokens = VocabParallelEmbedding(200, 64)
        model.embed_tokens.weight_loader(model.embed_tokens.weight, table)
        # Per-layer embeddings, of fewer tokens than the vocabulary has.
        second = torch.randn(160, 48, generator=generator)
        model.embed_tokens_per_layer = VocabParallelEmbedding(160, 48)
        model.embed_tokens_per_layer.weight_loader(model.embed_tokens_per_layer.weight, second)
        ids = torch.randint(0, 160, (12,), generator=generator)
        stock = model.embed_tokens(ids)
        assert torch.equal(stock, table[ids]), "vLLM's own lookup"
        stock_second = model.embed_tokens_per_layer(ids)
        store = ConceptStore(4, 8, PAGE * entry_bytes(8), 100, torch.device("cpu"))
        sums = model.embed_tokens.__dict__.pop("reduce_results")
        with pytest.raises(EmbeddingError, match="tensor_parallel_size 2"):
            InputEmbedding(model, layout(), store, 32)
        model.embed_tokens.reduce_results = sums
        source = ServedVectors(model.embed_tokens, layout().total, None, 1.0, 200)
        vectors = VectorStore(source, store, 4)
        embedding = InputEmbedding(model, layout(), store, 32, vectors)
        weights = torch.rand(5, 8, generator=generator)
        weights[:, 6:] = 0
        weights /= weights.sum(dim=1, keepdim=True)
        entries = torch.randint(0, 200, (5, 8), generator=generator)
        # Entries of both halves in one mixture, of one half only, and a single token.
        entries[1] = entries[1] % 90
        weights[2] = torch.tensor([1.0, *[0.0] * 7])
        store.weights[1:6], store.ids[1:6] = weights, entries
        places = torch.tensor([0, 3, 4, 9, 11])
        embedding.pointers[places] = torch.arange(1, 6)
        out = model.embed_tokens(ids)
        plain = torch.ones(12, dtype=torch.bool)
        plain[places] = False
        assert torch.equal(out[plain], stock[plain]), "rows without a mixture changed"
        expected = (weights[:, :, None].double() * table[entries].double()).sum(dim=1)
        assert torch.allclose(out[places].double(), expected, atol=1e-6), "mixtures"
        assert torch.equal(out[places[2]], table[entries[2, 0]]), "a single token of weight 1"
        out = model.embed_tokens_per_layer(ids)
        assert torch.equal(out[plain], stock_second[plain]), "rows without a mixture changed"
        known = torch.cat([second, torch.zeros(40, 48)])
        expected = (weights[:, :, None].double() * known[entries].double()).sum(dim=1)
        assert torch.allclose(out[places].double(), expected, atol=1e-6), "mixtures per layer"
        refuse_quantised(model)
        check_vectors(table, model, vectors, places)
    print("fine")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
