"""What cannot be right says so: every refusal, and what would happen without it."""

import contextlib
import types

import pytest
import torch
import transformers
from hf_models import PROMPTS, STEPS, TinyModel, batch, build, new_tokens
from hf_reference import Recipe

import tokenlens.hf.generate
from tokenlens.hf import ProtocolError, UnsupportedError, generate_kwargs, traces
from tokenlens.spec import SpecError

VERSION_4 = transformers.__version__.startswith("4.")

pytestmark = [
    # transformers warns about settings of the modes that are refused here.
    pytest.mark.filterwarnings("ignore::UserWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]


@pytest.fixture
def unguarded(monkeypatch):
    """No refusal of settings; what the loop itself can notice remains."""
    monkeypatch.setattr(tokenlens.hf.generate, "check", lambda *args: None)


def soft_kwargs(subject, recipe=None):
    return generate_kwargs(subject.model, None, subject.spec(recipe))


def assistant(subject):
    return {"assistant_model": TinyModel(subject.name).model}


@pytest.mark.parametrize(
    ("settings", "why", "instead"),
    [
        ({"num_beams": 2}, "reorders the rows", "num_return_sequences"),
        ({"num_beams": 2, "do_sample": True}, "reorders the rows", "num_return_sequences"),
        ({"prompt_lookup_num_tokens": 2}, "cannot foresee a mixture", "Leave it off"),
        ({"assistant_early_exit": 1}, "cannot foresee a mixture", "Leave it off"),
        ({"use_cache": False}, "turn back into tokens", "allowed: True"),
        ({"guidance_scale": 1.5}, "second forward pass", "Leave it at 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_host_a_spec(subject, settings, why, instead):
    with pytest.raises(UnsupportedError) as caught:
        subject.generate([PROMPTS[0]], **soft_kwargs(subject), **settings)
    assert why in str(caught.value)
    assert instead in str(caught.value)


def test_paged_cache(subject):
    settings = {"cache_implementation": "paged"}
    if VERSION_4:
        # This version does not know the name.
        with pytest.raises(ValueError, match="Invalid `cache_implementation`"):
            subject.generate([PROMPTS[0]], **soft_kwargs(subject), **settings)
        return
    # generate() hands over to continuous batching before it takes any processor. That refuses our
    # stopping criterion and prints it, and this is how the reason gets out.
    with pytest.raises(NotImplementedError, match=r"silently ignored.*dynamic or static cache"):
        subject.generate([PROMPTS[0]], **soft_kwargs(subject), **settings)


def test_paged_cache_in_a_model_s_own_settings(subject, monkeypatch):
    # Where it is not an argument, generate() does not hand over.
    monkeypatch.setattr(subject.model.generation_config, "cache_implementation", "paged")
    with pytest.raises((UnsupportedError, ValueError), match="cache_implementation"):
        subject.generate([PROMPTS[0]], **soft_kwargs(subject))


def test_assistant_model(subject):
    with pytest.raises(UnsupportedError, match="cannot foresee a mixture"):
        subject.generate([PROMPTS[0]], **soft_kwargs(subject), **assistant(subject))


def test_settings_in_a_generation_config(subject):
    config = transformers.GenerationConfig(num_beams=2, max_new_tokens=4, pad_token_id=0)
    with pytest.raises(UnsupportedError, match="reorders the rows"):
        subject.model.generate(**batch(PROMPTS), generation_config=config, **soft_kwargs(subject))


def test_refusal_leaves_nothing_behind(subject):
    plain = subject.generate()
    with pytest.raises(UnsupportedError):
        subject.generate(**soft_kwargs(subject), num_beams=2)
    assert torch.equal(subject.generate().sequences, plain.sequences)


def test_methods_without_mixtures_need_no_cache(subject):
    recipe = Recipe(soft=False, end_after=3)
    output = subject.generate(**soft_kwargs(subject, recipe), use_cache=False)
    for row, prompt in enumerate(PROMPTS):
        assert new_tokens(output)[row].tolist() == subject.reference(prompt, recipe).tokens


# Without the guard: the loop's own checks stop the run, or the result would be wrong.


@pytest.mark.parametrize(
    "settings", [{"prompt_lookup_num_tokens": 2}, {"use_cache": False}], ids=str
)
def test_protocol_stops_what_no_guard_has_seen(subject, unguarded, settings):
    # A prompt that repeats itself, so that the lookup has something to propose.
    prompt = [*PROMPTS[0], *PROMPTS[0][2:], *PROMPTS[0][2:5]]
    with pytest.raises(ProtocolError):
        subject.generate([prompt], **soft_kwargs(subject), **settings)


def test_protocol_stops_an_assistant(subject, unguarded):
    with pytest.raises(ProtocolError):
        subject.generate([PROMPTS[0]], **soft_kwargs(subject), **assistant(subject))


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"guidance_scale": 1.5}], ids=str)
def test_only_the_guard_knows(subject, unguarded, settings):
    # Beams are permuted between the decision and the feed, and a second pass is fed tokens where
    # the first is fed mixtures. Nothing else notices, so the guard is all there is.
    output = subject.generate([PROMPTS[0]], **soft_kwargs(subject), **settings)
    assert output.sequences.shape[1] == len(PROMPTS[0]) + STEPS


def test_wrong_number_of_specs(subject):
    kwargs = generate_kwargs(subject.model, None, [subject.spec(), {}])
    with pytest.raises(UnsupportedError, match=r"got 2 specs; allowed: one .* the 3 prompts"):
        subject.generate(**kwargs)
    with pytest.raises(UnsupportedError, match="empty list"):
        generate_kwargs(subject.model, None, [])


def test_encoder_decoder():
    config = transformers.T5Config(
        vocab_size=96, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(UnsupportedError, match=r"encoder-decoder; allowed: a causal language"):
        generate_kwargs(model, None, {})


def test_spec_that_the_model_cannot_carry_out(subject):
    spec = subject.spec()
    spec["phase"]["think_end"] = [500]
    with pytest.raises(SpecError, match=r"phase\.think_end: got 500; allowed: .*96"):
        generate_kwargs(subject.model, None, spec)
    with pytest.raises(SpecError, match="no tokenizer was given"):
        generate_kwargs(subject.model, None, {"methods": [{"method": "soft_thinking"}]})


def test_static_cache_of_a_model_that_needs_ids(subject, monkeypatch):
    """Measured on the model: what it makes of embeddings is not what it makes of their ids."""
    forward = type(subject.model.model).forward

    def scales_its_own(self, input_ids=None, **kwargs):
        if input_ids is not None:
            kwargs["inputs_embeds"] = self.embed_tokens(input_ids) * 3.0
        return forward(self, **kwargs)

    def demands(self, input_ids=None, **kwargs):
        if input_ids is None:
            raise RuntimeError("no ids")
        return forward(self, input_ids=input_ids, **kwargs)

    def reverses(self, input_ids=None, inputs_embeds=None, **kwargs):
        if inputs_embeds is not None:
            table = self.embed_tokens.weight
            ids = torch.cdist(inputs_embeds.flatten(0, 1), table).min(dim=1)
            if ids.values.max() > 1e-4:
                raise RuntimeError("not the embedding of a token")
        return forward(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

    for takes in (scales_its_own, demands, reverses):
        model = build("qwen3")
        monkeypatch.setattr(model.model, "forward", types.MethodType(takes, model.model))
        kwargs = generate_kwargs(model, None, subject.spec())
        with pytest.raises(UnsupportedError, match=r"static cache with qwen3; allowed: a dynamic"):
            subject.generate(model=model, **kwargs, cache_implementation="static")
        subject.generate(model=model, **kwargs)
    subject.generate(**soft_kwargs(subject), cache_implementation="static")


def test_second_processors_argument_is_python_s_own_error(subject):
    with pytest.raises(TypeError, match="multiple values"):
        subject.model.generate(
            **soft_kwargs(subject), logits_processor=transformers.LogitsProcessorList()
        )


def test_batch_generation_is_never_taken_for_a_run(subject, monkeypatch):
    # generate_batch() takes any keyword and drops ours without looking at it; no object that is
    # passed can notice. What can be said afterwards is that no run has happened.
    def dropped(self, inputs, generation_config=None, **kwargs):
        return {}

    monkeypatch.setattr(type(subject.model), "generate_batch", dropped)
    kwargs = soft_kwargs(subject)
    subject.model.generate_batch([PROMPTS[0]], **kwargs)
    with pytest.raises(LookupError, match="no generate"):
        traces(kwargs)


# A forward that the user has compiled: right, or an error, never hard tokens in silence.


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
# The tracer warns that it leaves the hook to Python, which is what is wanted.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "compiled before"])
def test_forward_that_the_user_compiled(warm):
    own = TinyModel("qwen3")
    expected = [own.reference(prompt, steps=4).tokens for prompt in PROMPTS]
    plain = new_tokens(own.generate(steps=4)).tolist()
    torch._dynamo.reset()
    own.model.forward = torch.compile(own.model.forward, backend="eager", dynamic=True)
    try:
        if warm:
            assert new_tokens(own.generate(steps=4)).tolist() == plain
        with contextlib.suppress(ProtocolError):
            output = own.generate(**soft_kwargs(own), steps=4)
            assert new_tokens(output).tolist() == expected
        assert new_tokens(own.generate(steps=4)).tolist() == plain
    finally:
        torch._dynamo.reset()


def test_embedding_that_is_not_asked(subject, monkeypatch):
    # As after a compiler has swallowed the hook: the module's forward runs, its hooks do not.
    monkeypatch.setattr("tokenlens.hf.attachment.Attachment.hook", lambda self, *modules: None)
    with pytest.raises(ProtocolError, match=r"the mixtures were not fed.*static"):
        subject.generate(**soft_kwargs(subject))
