"""Models that others have wrapped: LoRA on the embedding, weights that are offloaded."""

import pytest
import torch
from hf_models import PROMPTS, TinyModel, batch, new_tokens

from tokenlens.hf import generate_kwargs, traces
from tokenlens.hf.attachment import PREPARE
from tokenlens.hf.embedding import HookedEmbedding

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")

pytestmark = [
    # peft and accelerate look at parts of torch that newer versions deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:peft.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:accelerate.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:(peft|accelerate).*"),
]


@pytest.fixture
def own():
    """A subject whose model is going to be changed."""
    return TinyModel("qwen3")


@pytest.fixture(params=[["embed_tokens", "q_proj"], ["q_proj"]], ids=["embedding", "attention"])
def adapted(request, own):
    """The subject with a LoRA adapter that changes something, and the PeftModel."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=request.param, task_type="CAUSAL_LM", init_lora_weights=False
    )
    return own, peft.get_peft_model(own.model, config)


def test_lora_batch_is_the_reference(adapted):
    own, wrapped = adapted
    before = wrapped.get_base_model().__dict__.get(PREPARE)
    kwargs = generate_kwargs(wrapped, None, own.spec())
    output = own.generate(model=wrapped, **kwargs)
    for row, prompt in enumerate(PROMPTS):
        # The reference asks the model for its embedding module, which has the adapter in it.
        expected = own.reference(prompt)
        assert new_tokens(output)[row].tolist() == expected.tokens
        assert [step.latent for step in traces(kwargs)[row].steps] == expected.latent
        for step, logits in enumerate(expected.logits):
            assert (output.logits[step][row] - logits).abs().max() < 1e-4
    assert wrapped.get_base_model().__dict__.get(PREPARE) is before


def test_lora_batch_is_its_rows_alone(adapted):
    own, wrapped = adapted
    kwargs = generate_kwargs(wrapped, None, own.spec())
    output = own.generate(model=wrapped, **kwargs)
    for row, prompt in enumerate(PROMPTS):
        alone = own.generate([prompt], model=wrapped, **kwargs)
        assert new_tokens(output)[row].tolist() == new_tokens(alone, [prompt])[0].tolist()


def test_plain_run_of_a_lora_model_is_what_it_was(adapted):
    own, wrapped = adapted
    plain = own.generate(model=wrapped)
    own.generate(model=wrapped, **generate_kwargs(wrapped, None, own.spec()))
    after = own.generate(model=wrapped)
    assert torch.equal(after.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits))


# transformers takes a model whose weights come and go for one on another device.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_offloaded_weights(own):
    expected = own.generate(**generate_kwargs(own.model, None, own.spec()))
    accelerate.cpu_offload(own.model, execution_device=torch.device("cpu"))
    assert own.model.get_input_embeddings().weight.is_meta
    output = own.generate(**generate_kwargs(own.model, None, own.spec()))
    assert torch.equal(output.sequences, expected.sequences)


@pytest.mark.parametrize("scale", [1.0, 32**0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probe_finds_a_scaled_table(scale, dtype):
    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * torch.tensor(scale, dtype=self.weight.dtype)

    torch.manual_seed(0)
    embedding = HookedEmbedding(Scaled(40, 16).to(dtype))
    embedding.probe()
    assert embedding.is_table


class Normed(torch.nn.Embedding):
    def forward(self, ids):
        out = super().forward(ids)
        return out / out.norm(dim=-1, keepdim=True)


class Shifted(torch.nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 0.5


@pytest.mark.parametrize("kind", [Normed, Shifted])
def test_probe_does_not_take_others_for_a_table(kind):
    torch.manual_seed(0)
    embedding = HookedEmbedding(kind(40, 16))
    embedding.probe()
    assert not embedding.is_table


def test_left_padding_of_a_lora_model(adapted):
    own, wrapped = adapted
    kwargs = generate_kwargs(wrapped, None, own.spec())
    output = wrapped.generate(**batch(PROMPTS), **kwargs, max_new_tokens=4, pad_token_id=0)
    assert output.shape == (3, len(PROMPTS[0]) + 4)
