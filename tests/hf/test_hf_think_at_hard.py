"""Think-at-Hard: the public program's vectors, an independent loop, and what is refused."""

import json
import math
from contextlib import nullcontext
from pathlib import Path

import hard_positions as hard
import pytest
import torch
from hf_models import PROMPTS, batch, build
from transformers import LlamaConfig, LlamaForCausalLM

from tokenlens import SpecError
from tokenlens.errors import ProtocolError, UnsupportedError
from tokenlens.hf import generate_kwargs, think_at_hard_generate_kwargs
from tokenlens.hf.think_at_hard import passes as passes_module
from tokenlens.hf.think_at_hard.learned import decide, learned_of
from tokenlens.hf.think_at_hard.passes import SideCache, TwoPasses, adapted
from tokenlens.methods import files

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "search_methods.json").read_text(encoding="utf-8")
)
CASES = VECTORS["tah_forward"]
LORA_NAMES, DECIDER_NAMES = VECTORS["_tah_names"]
STEPS = 10


def sines(shape, number, scale):
    """The numbers of the vectors' parameters."""
    flat = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(0.7 * flat + 1.3 * number)).float().view(shape)


@pytest.fixture(scope="module")
def public():
    """The vectors' model, and its file's tensors but for the bias."""
    config = LlamaConfig(
        vocab_size=24, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    state = model.state_dict()
    with torch.no_grad():
        for number, name in enumerate(sorted(state)):
            made = sines(state[name].shape, number, 0.6)
            state[name].copy_(torch.ones_like(made) if "norm" in name else made)
    tensors = {}
    for number, name in enumerate(LORA_NAMES):
        short = name.removeprefix("simple_base_model.").replace(".default", "")
        module = model.get_submodule(short.removeprefix("base_model.model.").rpartition(".lora")[0])
        out, into = module.weight.shape
        tensors[short] = sines((2, into) if "lora_A" in short else (out, 2), number, 0.4)
    shapes = hard.decider_shapes(8)
    for number, name in enumerate(DECIDER_NAMES):
        if name != "threshold":
            ones = name.endswith("layer_norm.weight")
            made = torch.ones(shapes[name]) if ones else sines(shapes[name], number, 0.5)
            tensors[f"decider.{name}"] = made
    return model, tensors


def shifted(tensors, bias):
    key = "decider.backbone.output_layer.1.bias"
    return {**tensors, key: tensors[key] + bias}


def two_passes(model, num_rows=1, *, threshold=0.5, soft_top=3, name="tah"):
    return TwoPasses(
        model, learned_of(model, name), threshold=threshold, soft_top=soft_top, num_rows=num_rows
    )


@pytest.mark.parametrize("case", CASES)
def test_the_vectors_of_the_public_program(public, case, tmp_path):
    model, tensors = public
    tensors = shifted(tensors, case["bias"])
    files.allow({"tah": hard.saved(tmp_path / "tah", tensors)})
    ids = torch.tensor([case["ids"]])
    positions = torch.arange(ids.shape[1])[None]
    wanted = torch.tensor(case["logits"])
    count = torch.tensor(case["iter_count"])
    logits, again = two_passes(model)(ids, None, positions, keep=ids.shape[1])
    torch.testing.assert_close(logits[0], wanted, rtol=0, atol=2e-5)
    assert torch.equal(again[0] + 1, count)
    loop, went, said = hard.reference(model, tensors, case["ids"], threshold=0.5, soft_top=3)
    torch.testing.assert_close(loop, wanted, rtol=0, atol=2e-5)
    said_wanted = torch.tensor(case["decider_logits_depth1"])
    torch.testing.assert_close(said, said_wanted, rtol=0, atol=2e-5)
    assert torch.equal(went + 1, count)
    one_by_one = two_passes(model)
    for at in range(ids.shape[1]):
        step, went = one_by_one(ids[:, at : at + 1], None, positions[:, at : at + 1])
        torch.testing.assert_close(step[0, 0], wanted[at], rtol=0, atol=2e-5)
        assert int(went[0, 0]) + 1 == case["step_counts"][at]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model whose random decider sends a part of the positions again, and its file."""
    model = build("qwen3")
    tensors = hard.drawn(model)
    files.allow({"hard": hard.saved(tmp_path_factory.mktemp("tah") / "hard", tensors)})
    return model, tensors


def threshold_of(model, tensors, ids):
    """One that sends about half of the positions again, with room to both sides."""
    *_, said = hard.reference(model, tensors, ids, threshold=1.0, soft_top=5)
    values = torch.sigmoid(said).sort().values
    gaps = values[1:] - values[:-1]
    at = int(gaps[2:-2].argmax()) + 2
    return float((values[at] + values[at + 1]) / 2)


def generate(model, kwargs, prompts=PROMPTS, **more):
    settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    return model.generate(**batch(prompts), **settings | more, **kwargs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_of_several_lengths_is_what_an_independent_loop_makes(tiny, attention):
    model, tensors = tiny
    threshold = threshold_of(model, tensors, PROMPTS[0] + list(range(20, 40)))
    model.set_attn_implementation(attention)
    try:
        kwargs = think_at_hard_generate_kwargs(model, "hard", threshold=threshold, soft_top=5)
        output = generate(model, kwargs)
    finally:
        model.set_attn_implementation("sdpa")
    again = kwargs["custom_generate"].again
    width = max(map(len, PROMPTS))
    assert again.shape == (3, width + STEPS - 1)
    assert 0.1 < float(again.float().mean()) < 0.9
    for row, prompt in enumerate(PROMPTS):
        ids = output[row, width - len(prompt) :].tolist()
        logits, went, _ = hard.reference(model, tensors, ids[:-1], threshold=threshold, soft_top=5)
        assert logits[len(prompt) - 1 :].argmax(dim=1).tolist() == ids[len(prompt) :]
        assert torch.equal(again[row, width - len(prompt) :], went)
        assert not again[row, : width - len(prompt)].any()
    assert len(output.unique(dim=0)) == 3


def tampered(monkeypatch, what):
    """Switch off one of the things that the result hangs on."""
    if what == "adapters":
        monkeypatch.setattr(passes_module, "adapted", lambda *_: nullcontext())
    elif what == "side cache":
        monkeypatch.setattr(TwoPasses, "_seen", forget_side(TwoPasses._seen))
    else:
        update = SideCache.update

        def exchanged(self, *args, **kwargs):
            self._rows = self._rows.flip(0)
            return update(self, *args, **kwargs)

        monkeypatch.setattr(SideCache, "update", exchanged)


def forget_side(seen):
    def wrapped(self, *args):
        self._own = torch.zeros_like(self._own)
        return seen(self, *args)

    return wrapped


@pytest.mark.parametrize("what", ["adapters", "side cache", "rows"])
def test_without_one_of_its_parts_the_logits_are_others(tiny, what, monkeypatch):
    model, _ = tiny
    prompts = [prompt + list(range(20, 34 - len(prompt))) for prompt in PROMPTS]
    ids = torch.tensor(prompts)
    positions = torch.arange(ids.shape[1]).expand_as(ids)

    def logits():
        passes = two_passes(model, 3, threshold=0.0, soft_top=5, name="hard")
        passes(ids[:, :-1], None, positions[:, :-1])
        return passes(ids[:, -1:], None, positions[:, -1:])[0]

    right = logits()
    assert torch.equal(right, logits())
    tampered(monkeypatch, what)
    assert float((logits() - right).abs().max()) > 1e-2


def test_a_threshold_of_one_is_the_model(tiny):
    model, _ = tiny
    kwargs = think_at_hard_generate_kwargs(model, "hard", threshold=1, soft_top=5)
    assert torch.equal(generate(model, kwargs), generate(model, {}))
    assert not kwargs["custom_generate"].again.any()


def test_rows_do_not_see_each_other_and_padding_counts_for_nothing(tiny):
    model, _ = tiny
    kwargs = think_at_hard_generate_kwargs(model, "hard", threshold=0.5, soft_top=5)
    together = generate(model, kwargs)
    again = kwargs["custom_generate"].again
    width = max(map(len, PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, kwargs, [prompt])
        assert torch.equal(alone[0], together[row, width - len(prompt) :])
        assert torch.equal(kwargs["custom_generate"].again[0], again[row, width - len(prompt) :])


def test_nothing_is_left_on_the_model_also_after_an_error(tiny):
    model, _ = tiny
    ids = batch(PROMPTS)
    with torch.no_grad():
        before = model(**ids).logits
    kwargs = think_at_hard_generate_kwargs(model, "hard", threshold=0.0, soft_top=5)
    generate(model, kwargs)

    def fails(*_):
        raise RuntimeError("in the second pass")

    handle = model.model.layers[1].self_attn.v_proj.register_forward_hook(fails)
    adapters = learned_of(model, "hard").adapters
    with pytest.raises(RuntimeError, match="in the second"), adapted(model, adapters):
        model(**ids)
    handle.remove()
    # transformers leaves hooks of its own where hidden states were asked for.
    hooks = [hook for one in model.modules() for hook in one._forward_hooks.values()]
    assert not any(hook.__module__.startswith("tokenlens") for hook in hooks)
    with torch.no_grad():
        assert torch.equal(model(**ids).logits, before)


def test_a_module_that_is_not_called_is_an_error(tiny):
    model, _ = tiny
    adapters = learned_of(model, "hard").adapters
    with pytest.raises(ProtocolError, match="did not call model"), adapted(model, adapters):
        pass


def test_what_is_not_finite_leaves_no_step(tiny, tmp_path):
    model, tensors = tiny
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    loud = hard.saved(tmp_path / "loud", {**tensors, key: torch.full_like(tensors[key], 1e38)})
    kwargs = think_at_hard_generate_kwargs(
        model, "loud", threshold=0.0, soft_top=5, files={"loud": loud}
    )
    with pytest.raises(UnsupportedError, match="second pass that are not finite"):
        generate(model, kwargs)


def test_processors_criteria_samples_and_streamers_are_generate_s(tiny):
    model, _ = tiny

    class Streamer:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, ids):
            self.got += ids.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    kwargs = think_at_hard_generate_kwargs(
        model, "hard", threshold=0.5, soft_top=5, streamer=streamer
    )
    output = generate(model, kwargs, [PROMPTS[0]])
    assert streamer.ended
    assert streamer.got == output[0].tolist()
    with pytest.raises(UnsupportedError, match="streamer: got 3 rows"):
        generate(model, kwargs)
    kwargs = think_at_hard_generate_kwargs(model, "hard", threshold=0.5, soft_top=5)
    first = int(output[0, len(PROMPTS[0])])
    other = generate(model, kwargs, [PROMPTS[0]], suppress_tokens=[first])
    assert first not in other[0, len(PROMPTS[0]) :].tolist()
    ended = generate(model, kwargs, eos_token_id=first)
    row = ended[0, max(map(len, PROMPTS)) :].tolist()
    assert row[0] == first
    assert set(row[1:]) <= {0}
    sampled = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    torch.manual_seed(0)
    drawn = generate(model, kwargs, **sampled)
    assert drawn.shape[0] == 6
    torch.manual_seed(0)
    assert torch.equal(generate(model, kwargs, **sampled), drawn)


def test_its_decider_is_what_the_file_says(tiny):
    model, tensors = tiny
    with torch.no_grad():
        output = model(torch.tensor(PROMPTS[:1]), output_hidden_states=True)
    states = [output.hidden_states[layer][0] for layer in (0, 2)]
    got = decide(learned_of(model, "hard"), output.logits[0], states)
    wanted = hard.decided(tensors, output.logits[0], states)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


AT = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
BAD = {
    "a tensor too many": ({"decider.extra": torch.ones(2)}, {}, r"decider\.extra"),
    "A of another width": ({f"{AT}A.weight": torch.ones(2, 7)}, {}, r"lora_A\.weight: \[any, 32\]"),
    "B of another rank": ({f"{AT}B.weight": torch.ones(32, 3)}, {}, r"lora_B\.weight: \[32, 2\]"),
    "B is missing": ({f"{AT}B.weight": None}, {}, r"lora_B\.weight: \[32, 2\]"),
    "A is missing": ({f"{AT}A.weight": None}, {}, r"lora_A\.weight: \[any, 32\]"),
    "no such module": (
        {"lm.lora_A.weight": torch.ones(2, 32), "lm.lora_B.weight": torch.ones(32, 2)}, {},
        "LoRA of lm, which is nothing here",
    ),
    "no linear module": (
        {"model.norm.lora_A.weight": torch.ones(2, 32)}, {}, "model.norm, which is Qwen3RMSNorm",
    ),
    "a decider of another width": (
        {"decider.combined_projection.weight": torch.ones(4, 64)}, {}, r"\[any, 96\]",
    ),
    "a bias is missing": ({"decider.logits_projection.bias": None}, {}, r"bias: \[32\]"),
    "a gap in the blocks": (
        {"decider.backbone.blocks.0.layer_norm.weight": None}, {}, "backbone.blocks.0",
    ),
    "more logits than tokens": (
        {"decider.logits_projection.weight": torch.ones(32, 97)}, {}, "decider of 97 logits",
    ),
    "a threshold of two": ({"decider.threshold": torch.tensor(2.0)}, {}, "from 0 to 1"),
    "a layer that is not there": ({}, {"layers": "0,3"}, r"'0,3.*; allowed: .* to 2"),
    "layers that do not ascend": ({}, {"layers": "2,0"}, "ascending"),
    "layers in words": ({}, {"layers": "all"}, "metadata layers"),
    "no layers": ({}, {"layers": ""}, "layers ''"),
    "no alpha": ({}, {"lora_alpha": ""}, "lora_alpha ''"),
    "an alpha of nothing": ({}, {"lora_alpha": "nan"}, "lora_alpha 'nan'"),
    "an alpha of zero": ({}, {"lora_alpha": "0"}, "lora_alpha '0'"),
    "a product that is not finite": (
        {f"{AT}B.weight": torch.full((32, 2), 3e38)}, {}, "finite once it is scaled",
    ),
    "not finite": ({f"{AT}A.weight": torch.full((2, 32), float("nan"))}, {}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_named(tiny, name, tmp_path):
    model, tensors = tiny
    changes, about, message = BAD[name]
    wrong = {k: t for k, t in {**tensors, **changes}.items() if t is not None}
    path = hard.saved(tmp_path / "bad", wrong, {**hard.ABOUT, **about})
    with pytest.raises(SpecError, match=message) as caught:
        think_at_hard_generate_kwargs(model, "bad", soft_top=5, files={"bad": path})
    assert "bad" in str(caught.value)


def test_a_file_without_lora_a_pickle_and_a_name_that_nobody_allows(tiny, tmp_path):
    model, tensors = tiny
    bare = {k: t for k, t in tensors.items() if "lora" not in k}
    with pytest.raises(SpecError, match="LoRA of 0 modules"):
        think_at_hard_generate_kwargs(
            model, "bare", soft_top=5, files={"bare": hard.saved(tmp_path / "bare", bare)}
        )
    torch.save(tensors, tmp_path / "iter_decider.bin")
    with pytest.raises(SpecError, match="safetensors file that can be read"):
        think_at_hard_generate_kwargs(
            model, "pt", soft_top=5, files={"pt": tmp_path / "iter_decider.bin"}
        )
    with pytest.raises(SpecError, match="a file that the operator allows"):
        think_at_hard_generate_kwargs(model, str(tmp_path / "bare"), soft_top=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold: got 1.5; allowed: a number from 0 to 1"),
        ({"threshold": float("nan")}, "threshold: got nan"),
        ({"threshold": "0.5"}, "threshold: got '0.5'"),
        ({"threshold": True}, "threshold: got True"),
        ({"threshold": None}, "has none of its own"),
        ({"soft_top": 0}, "soft_top: got 0; allowed: 1 to 96"),
        ({}, "soft_top: got 100; allowed: 1 to 96"),
    ],
)
def test_settings_that_cannot_be(tiny, settings, message):
    defaults = {} if not settings else {"soft_top": 5}
    with pytest.raises(SpecError, match=message):
        think_at_hard_generate_kwargs(tiny[0], "hard", **defaults | settings)


def test_the_file_s_own_threshold(tiny, tmp_path):
    model, tensors = tiny
    own = hard.saved(tmp_path / "own", {**tensors, "decider.threshold": torch.tensor(1.0)})
    kwargs = think_at_hard_generate_kwargs(
        model, "own", threshold=None, soft_top=5, files={"own": own}
    )
    generate(model, kwargs)
    assert not kwargs["custom_generate"].again.any()
    # As published the argument is what counts.
    kwargs = think_at_hard_generate_kwargs(model, "own", threshold=0.0, soft_top=5)
    generate(model, kwargs)
    assert kwargs["custom_generate"].again[0].all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams: got 2; allowed: 1"),
        ({"use_cache": False}, "use_cache: got False"),
        ({"cache_implementation": "static"}, "cache_implementation: got static"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate: got True"),
        ({"inputs_embeds": torch.zeros(3, 8, 32)}, "got inputs_embeds; allowed: input_ids"),
        ({"token_type_ids": torch.zeros(3, 8, dtype=torch.int64)}, "token_type_ids"),
    ],
)
def test_calls_that_cannot_be_right(tiny, settings, message):
    model, _ = tiny
    kwargs = think_at_hard_generate_kwargs(model, "hard", soft_top=5)
    with pytest.raises((UnsupportedError, ValueError), match=message):
        generate(model, kwargs, **settings)


def test_not_beside_a_spec_nor_for_another_model_nor_compiled(tiny, subject):
    model, _ = tiny
    kwargs = think_at_hard_generate_kwargs(model, "hard", soft_top=5)
    beside = generate_kwargs(model, None, {"methods": []})
    with pytest.raises(UnsupportedError, match="those of a tokenlens spec"):
        generate(model, {**kwargs, **beside})
    with pytest.raises(UnsupportedError, match="generate\\(\\) of another"):
        generate(subject.model, kwargs)
    other = build("qwen3")
    other.model.layers[1].compile()
    kwargs = think_at_hard_generate_kwargs(other, "hard", soft_top=5)
    with pytest.raises(UnsupportedError, match=r"got model\.layers\.1 compiled"):
        generate(other, kwargs)


def test_models_with_windows_are_refused():
    with pytest.raises(SpecError, match="full attention in every layer"):
        think_at_hard_generate_kwargs(build("gemma3"), "hard", soft_top=5)
