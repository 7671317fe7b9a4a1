"""Input embeddings of SGLang's own classes that concept tokens cannot be mixed from."""

import pytest
import torch
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from tokenlens.errors import EmbeddingError
from tokenlens.serving.embedding import find_input_embedding, per_layer_embeddings
from tokenlens.sglang.embedding import layout


def table():
    """A table of one rank."""
    return VocabParallelEmbedding(200, 64, enable_tp=False)


def refused(model, words, find=find_input_embedding):
    """The model is refused with a reason and a way out."""
    with pytest.raises(EmbeddingError, match=words) as caught:
        find(model, layout(1))
    assert "--tokenlens-allow" in str(caught.value)


def main():
    """One that is taken, and four that are not."""
    model = nn.Module()
    model.embed_tokens = table()
    assert find_input_embedding(model, layout(1)) == ("embed_tokens", model.embed_tokens)
    quantised, packed = type("GGUFEmbeddingMethod", (), {})(), torch.zeros(100, 16).byte()
    method, weight = model.embed_tokens.quant_method, model.embed_tokens.weight
    model.embed_tokens.quant_method = quantised
    refused(model, "GGUFEmbeddingMethod.*not quantised")
    model.embed_tokens.quant_method = method
    model.embed_tokens.weight = nn.Parameter(packed, requires_grad=False)
    refused(model, r"torch\.uint8.*not quantised")
    model.embed_tokens.weight = weight
    second = model.embed_tokens_per_layer = table()
    assert find_input_embedding(model, layout(1))[0] == "embed_tokens"
    assert per_layer_embeddings(model, layout(1)) == [second]
    second.quant_method = quantised
    refused(model, "embed_tokens_per_layer: got .*GGUFEmbeddingMethod", per_layer_embeddings)
    model.word_embeddings = table()
    refused(model, r"got 2 input embeddings \(embed_tokens, word_embeddings\)")
    # As SGLang puts an adapter around it; its own class needs an accelerator.
    adapted = nn.Module()
    adapted.embed_tokens = nn.Module()
    adapted.embed_tokens.base_layer = table()
    refused(adapted, "LoRA adapter on the input embedding")
    refused(nn.Module(), "got 0 input embeddings")
    print("fine")


if __name__ == "__main__":
    main()
