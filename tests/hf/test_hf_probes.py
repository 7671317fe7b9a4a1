"""Methods that read hidden states inside ``generate()``, against loops of whole forward passes."""

import pytest
import torch
from hf_models import PROMPTS, START, VOCAB, TinyModel, new_tokens
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CompileConfig, PreTrainedTokenizerFast

from tokenlens.hf import generate_kwargs, traces
from tokenlens.methods import files
from tokenlens.methods.budget_guidance import predictor
from tokenlens.methods.diffadapt.step import CLASSES, probe
from tokenlens.spec import SpecError

STEPS, HIDDEN, BUDGET = 14, 32, 40
LINE_ENDS = range(10, 60)


@pytest.fixture(scope="module")
def words():
    """A tokenizer of which half of the tokens end a line."""
    names = {f"w{i}\n" if i in LINE_ENDS else f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(WordLevel(names, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def predictor_tensors(width=16, heads=4, vocab=VOCAB):
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    w = {"cls": random(HIDDEN), "proj.weight": random(width, HIDDEN), "proj.bias": random(width)}
    for name, shape in {
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        "up": (24, width), "down": (width, 24),
    }.items():  # fmt: skip
        w[f"blocks.0.{name}.weight"], w[f"blocks.0.{name}.bias"] = random(*shape), random(shape[0])
    for name in ("norm1", "norm2"):
        w[f"blocks.0.{name}.weight"], w[f"blocks.0.{name}.bias"] = torch.ones(width), random(width)
    # Means of about the budget, sharp enough to matter.
    w["alpha.weight"], w["rate.weight"] = random(vocab, width) * 20, random(vocab, width) * 8
    return w


@pytest.fixture(scope="module")
def operator_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_file(predictor_tensors(), folder / "bg", {"heads": "4"})
    generator = torch.Generator().manual_seed(2)
    made = {"w1": (5, HIDDEN), "b1": (5,), "w2": (3, 5), "b2": (3,)}
    tensors = {name: torch.randn(*shape, generator=generator) * 0.4 for name, shape in made.items()}
    tensors["b2"][1] -= 0.3
    save_file(tensors, folder / "da")
    files.allow({"predictor": folder / "bg", "probe": folder / "da"})
    return tensors


def spec_of(subject, *methods, level="full"):
    return {
        "methods": list(methods),
        "phase": {"think_start": [START], "think_end": [subject.end]},
        "trace": {"level": level},
    }


def run(subject, specs, words, **settings):
    kwargs = generate_kwargs(subject.model, words, specs)
    output = subject.generate(steps=STEPS, **kwargs, **settings)
    return new_tokens(output), torch.stack(output.logits, dim=1), traces(kwargs)


GUIDANCE = {"method": "budget_guidance", "file": "predictor", "budget": BUDGET}


@torch.no_grad()
def guided(subject, prompt, gate):
    """Tokens of one prompt, and how many were changed, by a loop of whole forward passes."""
    w = predictor_tensors()
    ids, thinking, at_line, spent, changed = list(prompt), START in prompt, True, 0, 0
    for _ in range(STEPS):
        out = subject.model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        logits = out.logits[0, -1].double()
        stock = int(logits.argmax())
        if thinking and at_line:
            states = torch.stack([layer[:, -1] for layer in out.hidden_states], dim=1)
            alpha, rate = (x[0].double().clamp(min=1e-30) for x in predictor.predict(states, w, 4))
            left = torch.tensor(max(BUDGET - spent, 1) + 1.0).double().log()
            p = torch.distributions.Gamma(alpha, rate).cdf(left)
            if gate:
                p = p * ((rate >= 10) & (alpha > 1) & (((alpha - 1) / rate).exp() - 1 >= 0.9))
            q = logits.softmax(0) * p
            logits = q if q.sum() > 0 else logits
        token = int(logits.argmax())
        changed += token != stock
        ids.append(token)
        at_line = token in LINE_ENDS
        spent += thinking
        thinking = thinking and token != subject.end
    return ids[len(prompt) :], changed


@pytest.mark.parametrize("profile", ["default", "published"])
def test_budget_guidance(subject, words, operator_files, profile):
    config = {**GUIDANCE, "profile": profile}
    tokens, _, found = run(subject, spec_of(subject, config), words)
    wanted = [guided(subject, prompt, profile == "published") for prompt in PROMPTS]
    assert tokens.tolist() == [ids for ids, _ in wanted]
    assert sum(changed for _, changed in wanted) > 2
    assert any(step.edits for step in found[0].steps)


def test_rows_that_asked_for_nothing_keep_their_bits(subject, words, operator_files):
    output = subject.generate(steps=STEPS)
    stock, logits = new_tokens(output), torch.stack(output.logits, dim=1)
    specs = [{"methods": []}, spec_of(subject, GUIDANCE), spec_of(subject, ADAPT)]
    tokens, found, _ = run(subject, specs, words)
    assert torch.equal(tokens[0], stock[0])
    assert torch.equal(found[0], logits[0])
    assert tokens[1].tolist() == guided(subject, PROMPTS[1], False)[0]


ADAPT = {"method": "diffadapt", "file": "probe", "budget": 10}


@torch.no_grad()
def classes(subject, tensors):
    found = []
    for prompt in PROMPTS:
        out = subject.model(torch.tensor([prompt]), output_hidden_states=True)
        found.append(probe(out.hidden_states[-1][:, -1], *tensors.values())[0])
    return found


def test_diffadapt(subject, words, operator_files):
    _, _, found = run(subject, spec_of(subject, ADAPT), words)
    probabilities = classes(subject, operator_files)
    chosen = [CLASSES[int(p.argmax())] for p in probabilities]
    assert len(set(chosen)) > 1
    strategies = {"easy": (0.5, 4), "normal": (0.8, 10), "hard": (0.4, 5)}
    for row, trace in enumerate(found):
        temperature, budget = strategies[chosen[row]]
        thinking = [step for step in trace.steps if step.phase == "thinking"]
        assert thinking[0].edits["diffadapt"] == pytest.approx(temperature)
        ended = [step for step in thinking if step.forced]
        assert ended or len(thinking) <= budget
        assert all(len(thinking) == budget + 1 for _ in ended)
    # Below the confidence a prompt is normal.
    sure = float(torch.stack(probabilities).max(dim=1).values.max())
    kwargs = generate_kwargs(
        subject.model, words, spec_of(subject, {**ADAPT, "confidence": min(1.0, sure + 1e-3)})
    )
    subject.generate(steps=STEPS, **kwargs)
    for trace in traces(kwargs):
        assert trace.steps[0].edits["diffadapt"] == pytest.approx(0.8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.*")
def test_a_static_cache_compiled_and_not(words, operator_files):
    torch._dynamo.reset()
    own = TinyModel("qwen3")
    spec = spec_of(own, GUIDANCE, ADAPT)
    wanted = run(own, spec, words)[0]
    assert torch.equal(run(own, spec, words, cache_implementation="static")[0], wanted)
    config = CompileConfig(backend="eager", fullgraph=False, mode=None)
    config._compile_all_devices = True
    settings = {"cache_implementation": "static", "compile_config": config}
    plain = own.generate(steps=STEPS, **settings)
    assert torch.equal(run(own, spec, words, **settings)[0], wanted)
    assert torch.equal(own.generate(steps=STEPS, **settings).sequences, plain.sequences)
    torch._dynamo.reset()


def without(name):
    tensors = predictor_tensors()
    del tensors[name]
    return tensors


WRONG = {
    "no cls": (without("cls"), {"heads": "4"}),
    "no head": (without("rate.weight"), {"heads": "4"}),
    "no block": (
        {k: v for k, v in predictor_tensors().items() if "block" not in k},
        {"heads": "4"},
    ),
    "a block without its norm": (without("blocks.0.norm2.bias"), {"heads": "4"}),
    "another vocabulary": (predictor_tensors(vocab=VOCAB - 1), {"heads": "4"}),
    "another width": (predictor_tensors() | {"cls": torch.ones(HIDDEN + 1)}, {"heads": "4"}),
    "heads that do not divide": (predictor_tensors(), {"heads": "3"}),
    "no heads": (predictor_tensors(), None),
    "zero heads": (predictor_tensors(), {"heads": "0"}),
    "words for heads": (predictor_tensors(), {"heads": "four"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_predictor_is_refused(subject, words, tmp_path, name):
    save_file(WRONG[name][0], tmp_path / "f", WRONG[name][1])
    files.allow({"wrong": tmp_path / "f"})
    with pytest.raises(SpecError, match=r"budget_guidance\.file"):
        generate_kwargs(subject.model, words, spec_of(subject, {**GUIDANCE, "file": "wrong"}))


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2"])
def test_a_file_that_is_no_probe_is_refused(subject, words, operator_files, tmp_path, name):
    tensors = {**operator_files, name: torch.ones(4, 7)}
    save_file(tensors, tmp_path / "f")
    files.allow({"wrong": tmp_path / "f"})
    with pytest.raises(SpecError, match=r"diffadapt\.file"):
        generate_kwargs(subject.model, words, spec_of(subject, {**ADAPT, "file": "wrong"}))
