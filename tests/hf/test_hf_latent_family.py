"""Every latent method inside ``generate()``: what is fed is what an independent loop would feed."""

import pytest
import torch
from gated_loops import Published, Switching
from hf_models import PROMPTS, START, VOCAB, TinyModel, batch, new_tokens
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tokenlens.core.next_input import gaussian
from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import SpecError, needs_of, parse_spec
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import members

STEPS = 14
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def subject():
    return TinyModel("llama")


@pytest.fixture(scope="module")
def tied():
    return TinyModel("gemma3")


def spec_of(subject, *methods, seed=0):
    return {
        "methods": list(methods),
        "seed": seed,
        "phase": {"think_start": [START], "think_end": [subject.end]},
        "trace": {"level": "full", "max_entries": 64},
    }


def run(subject, *methods, prompts=PROMPTS, seed=0, steps=STEPS, **settings):
    """Tokens, logits and traces of a batch."""
    kwargs = generate_kwargs(subject.model, None, spec_of(subject, *methods, seed=seed))
    output = subject.generate(prompts, steps=steps, **kwargs, **settings)
    return new_tokens(output, prompts), torch.stack(output.logits, dim=1), traces(kwargs)


@torch.no_grad()
def replayed(subject, prompt, tokens, fed):
    """Logits of one sequence whose generated tokens were fed as the given embeddings."""
    embed = subject.model.get_input_embeddings()
    rows = [embed(torch.tensor([prompt]))]
    for token, x in zip(tokens, fed):
        rows.append(embed(torch.tensor([[token]])) if x is None else x[None, None].to(rows[0]))
    return subject.model(inputs_embeds=torch.cat(rows, dim=1), use_cache=False).logits[0]


def mixture(subject, entries):
    embed = subject.model.get_input_embeddings()
    ids = torch.tensor([i for i, _ in entries])
    weights = torch.tensor([w for _, w in entries])
    return (embed(ids).detach() * (weights / weights.sum())[:, None]).sum(0)


def check(subject, tokens, logits, found, extra=None):
    """The logits of every step follow from what the trace says was fed."""
    latent = 0
    for row, (prompt, trace) in enumerate(zip(PROMPTS, found, strict=True)):
        fed = []
        for place, step in enumerate(trace.steps):
            x = mixture(subject, step.entries) if step.latent else None
            if step.latent and extra is not None:
                x = extra(row, place, step, x)
            fed.append(x)
            latent += step.latent
        wanted = replayed(subject, prompt, tokens[row, : len(fed)].tolist(), fed[:-1])
        start = len(prompt) - 1
        torch.testing.assert_close(
            logits[row, : len(fed)], wanted[start : start + len(fed)], rtol=0, atol=TOLERANCE
        )
    return latent


GATE = {"of": "raw", "trend": True, "first": "latent", "dwell_discrete": 1}
METHODS = {
    "soft_thinking": {},
    "soft_tokens": {"noise_scale": 0},
    "think_router": {"gate": {"signal": "max_probability", "enter": 0.05}},
    "lead": {"gate": GATE},
    "swi_reasoning": {"gate": GATE, "first": {"tokens": [9], "keep": 0.9}, "budget": 30},
    "selar": {"gate": {"of": "topk", "unit": "fraction", "enter": 0.97}},
    "latent_grpo": {},
    "cot2": {"draws": 3, "scale_logits": False},
}


def test_every_method_that_feeds_concept_tokens_is_tried_here():
    hidden = {
        name
        for name in members("latent")
        if Need.HIDDEN_STATE in needs_of(parse_spec({"methods": [{"method": name}]}))
    }
    assert hidden
    assert set(METHODS) == set(members("latent")) - hidden


@pytest.mark.parametrize("name", METHODS)
def test_concept_tokens_are_fed(subject, name):
    tokens, logits, found = run(subject, {"method": name, **METHODS[name]})
    assert check(subject, tokens, logits, found) > 3


@pytest.mark.parametrize("name", ["think_router", "selar", "lead"])
def test_a_gate_has_steps_of_both_kinds(subject, name):
    _, _, found = run(subject, {"method": name, **METHODS[name]}, steps=24)
    thinking = [s for trace in found for s in trace.steps if s.phase == "thinking"]
    kinds = {step.latent for step in thinking}
    assert kinds == {True, False}
    if name == "lead":
        assert sum(trace.counts.gate_switches for trace in found) > 0


@pytest.mark.parametrize("noise", ["soft_grpo_noise", "gumbel_noise"])
def test_a_gate_with_noise(subject, noise):
    router = {"method": "think_router", **METHODS["think_router"]}
    tokens, logits, found = run(subject, router, {"method": noise}, seed=3)
    assert check(subject, tokens, logits, found) > 3


@pytest.mark.parametrize("name", ["subject", "tied"])
def test_the_full_mixture(name, request):
    subject = request.getfixturevalue(name)
    method = {"method": "lead", "mixture": "full", "gate": {**GATE, "trend": False, "enter": 0}}
    tokens, logits, found = run(subject, method)
    table = subject.model.get_input_embeddings()(torch.arange(96)).detach()

    def full(row, place, step, _):
        return torch.softmax(logits[row, place].double(), 0).float() @ table

    assert check(subject, tokens, logits, found, full) > 10


def test_an_anchor_beside_the_full_mixture(subject):
    first = {"tokens": [9, 10], "keep": 0.6}
    gate = {**GATE, "trend": False, "enter": 0}
    method = {"method": "swi_reasoning", "mixture": "full", "gate": gate, "first": first}
    tokens, logits, found = run(subject, method)
    embed = subject.model.get_input_embeddings()
    table = embed(torch.arange(96)).detach()
    seen = set()

    def blended(row, place, step, _):
        x = torch.softmax(logits[row, place].double(), 0).float() @ table
        if row not in seen:
            seen.add(row)
            x = 0.6 * x + 0.4 * embed(torch.tensor([9, 10])).detach().mean(0)
        return x

    assert check(subject, tokens, logits, found, blended) > 10


@pytest.fixture(scope="module")
def words():
    """A tokenizer that writes token 7 as ``w7``."""
    model = WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@torch.no_grad()
def swi_reasoning(subject, prompt, settings, steps):
    """Tokens, what was fed and the switches, by an independent loop with whole forward passes."""
    model, embed = subject.model, subject.model.get_input_embeddings()
    table = embed(torch.arange(VOCAB))
    rows, machine, tokens, fed = [embed(torch.tensor([prompt]))], Published(settings), [], []
    for _ in range(steps):
        logits = model(inputs_embeds=torch.cat(rows, dim=1), use_cache=False).logits[0, -1]
        p = torch.softmax(logits.double(), 0)
        entropy = float(torch.special.entr(p).sum())
        token, (share, anchors), over = machine.step(entropy, int(logits.argmax()))
        tokens.append(token)
        if over:
            break
        fed.append((share, anchors))
        x = share * (p.float() @ table)
        rows.append((x + sum(w * table[i] for i, w in anchors.items()))[None, None])
    return tokens, fed, machine.count


def test_switch_control_is_that_of_the_authors_program(subject, words, monkeypatch):
    steps, end, eos = 40, subject.end, 95
    monkeypatch.setattr(subject.model.generation_config, "eos_token_id", eos)
    settings = Switching(
        window=1, alpha=0.6, beta=0.7, max_new_tokens=steps, newline=9, enter_anchor=START,
        end=end, eos=eos, exempt=(20, 21), max_switches=1, converge=(40, end, 41, 42),
        terminate=(43, 44, end, 45, 46), answer_tokens=9,
    )  # fmt: skip
    method = {
        "method": "swi_reasoning", "profile": "published", "budget": steps,
        "gate": {**GATE, "exempt": settings.exempt},
        "first": {"tokens": [9], "keep": 0.9},
        "enter": {"tokens": [START], "keep": 0.6, "moves": True},
        "leave": {"tokens": [end], "keep": 0.7, "moves": True},
        "switch_control": {
            "after": 1, "converge": f"w40 w{end} w41 w42", "answer_tokens": 9,
            "terminate": f"w43 w44 w{end} w45 w46",
        },
    }  # fmt: skip
    kwargs = generate_kwargs(subject.model, words, spec_of(subject, method))
    output = subject.generate(PROMPTS, steps=steps, **kwargs)
    injected_mixtures, switches = 0, 0
    for prompt, trace, row in zip(
        PROMPTS, traces(kwargs), new_tokens(output).tolist(), strict=True
    ):
        tokens, fed, count = swi_reasoning(subject, prompt, settings, steps)
        assert row[: len(tokens)] == tokens
        latent = [step.latent for step in trace.steps[: len(fed)]]
        assert latent == [share > 0 for share, _ in fed]
        injected_mixtures += sum(step.latent and step.forced for step in trace.steps)
        switches += count
    # What the test is about has happened.
    assert injected_mixtures > 0
    assert switches > 3


@pytest.mark.parametrize(("rms", "factor"), [("coordinate", 1.0), ("row", 32**0.5)])
def test_gaussian_noise_on_the_mixture(subject, rms, factor):
    method = {"method": "soft_tokens", "noise_scale": 0.1, "rms": rms}
    tokens, logits, found = run(subject, method, seed=11)
    table = subject.model.get_input_embeddings().weight.detach()
    sigma = 0.1 * factor * float((table**2).mean().sqrt())

    def noisy(row, place, step, x):
        from tokenlens_kernels import philox

        # The n-th row of a call has the seed of its n-th sample; here each row is a first one.
        seed = int(philox.sample_seed(11, 0))
        draw = gaussian(torch.tensor([seed]), torch.tensor([step.position]), 32)[0]
        return x + sigma * draw

    assert check(subject, tokens, logits, found, noisy) > 10


@torch.no_grad()
def hidden_states(subject, prompt, tokens, fed):
    embed = subject.model.get_input_embeddings()
    rows = [embed(torch.tensor([prompt]))]
    for token, x in zip(tokens, fed):
        rows.append(embed(torch.tensor([[token]])) if x is None else x[None, None])
    output = subject.model(
        inputs_embeds=torch.cat(rows, dim=1), use_cache=False, output_hidden_states=True
    )
    return output.hidden_states[-1][0, -1]


@pytest.mark.parametrize(
    ("method", "mapped"), [("coconut", "as it is"), ("latent_mas", "map"), ("published", "norm")]
)
def test_hidden_states_are_fed_back(subject, method, mapped):
    config = {"method": method if method != "published" else "latent_mas", "steps": 4}
    # The arg-max of a random model may end its thinking.
    config["placeholder"] = 9
    if method == "published":
        config["profile"] = "published"
    tokens, logits, found = run(subject, config)
    model = subject.model
    inputs = model.get_input_embeddings().weight.detach()
    outputs = model.get_output_embeddings().weight.detach()
    wide = outputs.double()
    square = wide.T @ wide + 1e-5 * torch.eye(inputs.shape[1]).double()
    matrix = torch.linalg.solve(square, wide.T @ inputs.double()).float()
    fed = {row: [] for row in range(len(PROMPTS))}

    def back(row, place, step, _):
        before = found[row].steps[:place]
        given = [fed[row][i] for i in range(place)]
        x = hidden_states(subject, PROMPTS[row], [s.token for s in before], given)
        if mapped == "map":
            x = x @ matrix
        if mapped != "as it is":
            x = x * inputs.norm(dim=1).mean() / x.norm()
        fed[row].append(x)
        return x

    for row in fed:
        assert [s.latent for s in found[row].steps[:4]] == [True] * 4
        assert not any(s.latent for s in found[row].steps[4:])
    assert check(subject, tokens, logits, found, back) == 12


@pytest.mark.parametrize(("alpha", "rescale"), [(0.25, False), (1.0, False), (0.5, True)])
def test_a_hidden_state_and_the_full_mixture_are_fused(subject, alpha, rescale):
    gate = {"signal": "max_probability", "of": "raw", "latent_when": "low", "enter": 0.3}
    config = {"method": "latent_fusion", "alpha": alpha, "rescale": rescale, "gate": gate}
    tokens, logits, found = run(subject, config)
    table = subject.model.get_input_embeddings().weight.detach()
    fed = {row: [] for row in range(len(PROMPTS))}

    def fused(row, place, step, _):
        before = found[row].steps[:place]
        given = [*fed[row], *[None] * (place - len(fed[row]))]
        h = hidden_states(subject, PROMPTS[row], [s.token for s in before], given)
        if rescale:
            h = h * table.norm(dim=1).mean() / h.norm()
        p = torch.softmax(logits[row, place].double(), 0).float()
        x = alpha * h + (1 - alpha) * (p @ table)
        fed[row] = [*given, x]
        return x

    assert check(subject, tokens, logits, found, fused) > 3
    thinking = [s for trace in found for s in trace.steps if s.phase == "thinking"]
    for row, trace in enumerate(found):
        for place, step in enumerate(trace.steps):
            sure = float(torch.softmax(logits[row, place].double(), 0).max()) >= 0.3
            assert not (step.latent and sure)
    assert {step.latent for step in thinking} == {True, False}


def test_a_placeholder_is_the_visible_token(subject):
    config = {"method": "coconut", "steps": 3}
    tokens, _, _ = run(subject, {**config, "placeholder": 9})
    assert (tokens[:, :3] == 9).all()
    tokens, logits, _ = run(subject, config)
    assert torch.equal(tokens[:, 0], logits[:, 0].argmax(1))


def test_mixed_rows_are_as_if_alone(subject):
    """Rows without a method keep their bits beside dense mixtures, hidden states and noise."""
    configs = [
        [{"method": "lead", "mixture": "full", "gate": GATE}],
        [{"method": "coconut", "steps": 3}],
        [],
    ]
    specs = [spec_of(subject, *methods) for methods in configs]
    kwargs = generate_kwargs(subject.model, None, specs)
    together = subject.generate(**kwargs, steps=STEPS)
    plain = subject.generate(steps=STEPS)
    assert torch.equal(new_tokens(together)[2], new_tokens(plain)[2])
    for row in range(3):
        kwargs = generate_kwargs(subject.model, None, specs[row])
        alone = subject.generate([PROMPTS[row]], **kwargs, steps=STEPS)
        assert new_tokens(alone, [PROMPTS[row]])[0].tolist() == new_tokens(together)[row].tolist()


def test_an_embedding_that_is_no_table_refuses_the_full_mixture(subject, monkeypatch):
    from tokenlens.hf.embedding import HookedEmbedding

    monkeypatch.setattr(HookedEmbedding, "probe", lambda self: None)
    with pytest.raises(SpecError, match="mixture"):
        run(subject, {"method": "lead", "mixture": "full"})
    run(subject, {"method": "lead"})


def test_nothing_is_left_on_the_model(subject):
    run(subject, {"method": "coconut", "steps": 2})
    assert not subject.model.get_output_embeddings()._forward_pre_hooks
    assert not subject.model.get_input_embeddings()._forward_hooks
    assert batch(PROMPTS)["input_ids"].shape[0] == 3
