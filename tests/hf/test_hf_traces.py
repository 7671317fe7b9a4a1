"""Traces say what happened, to the last token, and nothing that did not."""

import pytest
import torch
from hf_models import ARCHITECTURES, PROMPTS, STEPS, new_tokens, up_to
from hf_reference import Recipe

import tokenlens.hf.generate
from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import parse_spec


class Letters:
    """A tokenizer with a letter for each token, for stop strings."""

    def __init__(self, size):
        # transformers spells tokens out behind these six letters.
        self.letters = [*"abcdef", *(chr(0x4E00 + i) for i in range(size - 6))]
        self.vocab = {letter: i for i, letter in enumerate(self.letters)}

    def __len__(self):
        return len(self.letters)

    def get_vocab(self):
        return dict(self.vocab)

    def encode(self, text, add_special_tokens=False):
        return [self.vocab[letter] for letter in text]

    def decode(self, ids, **kwargs):
        return "".join(self.letters[int(i)] for i in ids)

    def convert_ids_to_tokens(self, ids):
        return self.letters[ids] if isinstance(ids, int) else [self.letters[i] for i in ids]

    _convert_id_to_token = convert_ids_to_tokens

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def __call__(self, text, add_special_tokens=False, **kwargs):
        return {"input_ids": self.encode(text)}


def run(subject, recipe=None, **settings):
    kwargs = generate_kwargs(subject.model, None, subject.spec(recipe))
    return subject.generate(**kwargs, **settings), traces(kwargs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_are_those_of_the_reference(subjects, name):
    subject = subjects(name)
    output, found = run(subject, eos_token_id=subject.eos)
    for row, prompt in enumerate(PROMPTS):
        expected = subject.reference(prompt, eos=subject.eos)
        steps = found[row].steps
        generated = up_to(new_tokens(output)[row].tolist(), subject.eos)
        assert [step.token for step in steps] == generated == expected.tokens
        assert [step.latent for step in steps] == expected.latent
        assert [step.phase for step in steps] == expected.phases
        assert [step.position for step in steps] == [len(prompt) + i for i in range(len(steps))]
        for step, entropy in zip(steps, expected.entropies):
            assert step.entropy == pytest.approx(entropy, abs=1e-4)


def test_counts_add_up(subject):
    _, found = run(subject, Recipe(cold_stop=(4.0, 3)), eos_token_id=subject.eos)
    for prompt, trace in zip(PROMPTS, found):
        expected = subject.reference(prompt, Recipe(cold_stop=(4.0, 3)), eos=subject.eos)
        counts = trace.counts
        assert counts.tokens == len(trace.steps) == len(expected.tokens)
        assert counts.latent_steps == sum(expected.latent)
        assert counts.thinking_tokens == expected.phases.count("thinking")
        assert counts.forced_steps == expected.phases.count("thinking")
        assert counts.cold_stops == expected.cold_stops
        assert counts.invalid_steps == 0
    assert sum(trace.counts.cold_stops for trace in found) > 0


def test_entries_are_the_mixture(subject):
    _, found = run(subject)
    for step in found[1].steps:
        if step.latent:
            weights = [weight for _, weight in step.entries]
            assert step.entries[0][0] == step.token
            assert sum(weights) == pytest.approx(1, abs=1e-5)
            assert weights == sorted(weights, reverse=True)
            assert len(weights) <= Recipe().max_entries


def test_stop_string_ends_the_trace(subject):
    tokenizer = Letters(96)
    free, _ = run(subject, eos_token_id=95)
    row = new_tokens(free)[1].tolist()
    stop = tokenizer.decode(row[4:6])
    settings = {"eos_token_id": 95, "stop_strings": [stop], "tokenizer": tokenizer}
    output, found = run(subject, **settings)
    stopped = [i for i, r in enumerate(new_tokens(free).tolist()) if stop in tokenizer.decode(r)]
    assert 1 in stopped
    assert len(stopped) < 3
    assert new_tokens(output)[1].tolist()[6:] == [0] * (new_tokens(output).shape[1] - 6)
    for index, trace in enumerate(found):
        text = tokenizer.decode(new_tokens(free)[index].tolist())
        length = text.index(stop) + len(stop) if index in stopped else STEPS
        assert [step.token for step in trace.steps] == new_tokens(free)[index, :length].tolist()
        assert trace.counts.tokens == length


def test_steps_say_what_was_edited_and_when_a_gate_switched(subject):
    reflex = {"method": "cyclic_reflex", "words": ["a"], "quirks": {"forms": "bare"}, "period": 8.0}
    trend = {"signal": "entropy", "latent_when": "high", "trend": True, "first": "latent"}
    gate = {"method": "think_router", "gate": {**trend, "enter": None, "leave": None}}
    gate |= {"top_k": 8, "max_entries": 8}
    specs = [subject.spec(methods=methods) for methods in ([reflex], [gate], [])]
    kwargs = generate_kwargs(subject.model, Letters(96), specs)
    output = subject.generate(**kwargs)
    edited, gated, plain = traces(kwargs)
    assert {(step.edits, step.switch) for step in plain.steps} == {(None, None)}
    biases = []
    for index, step in enumerate(edited.steps):
        added = (output.scores[index] - output.logits[index])[0]
        amount = (step.edits or {}).get("cyclic_reflex", 0.0)
        assert added[0].item() == pytest.approx(amount, abs=1e-5)
        assert not added[1:].any()
        biases.append(amount)
    assert max(biases) == 5.0
    assert min(biases) < 0
    mode, switches = gated.steps[0].latent, 0
    for step in gated.steps[: gated.counts.thinking_tokens]:
        if step.switch is not None:
            mode = step.switch == "to_latent"
            switches += not mode
        assert step.latent == mode
    assert switches == gated.counts.gate_switches > 2


def test_levels(subject):
    specs = [subject.spec(trace={"level": level}) for level in ("off", "summary", "full")]
    kwargs = generate_kwargs(subject.model, None, specs)
    subject.generate(**kwargs)
    off, summary, full = traces(kwargs)
    assert off is None
    assert (summary.counts.tokens, summary.steps) == (STEPS, ())
    assert len(full.steps) == STEPS
    assert full.engine == "hf"
    assert full.spec == parse_spec(specs[2])


def test_steps_beyond_the_limit_are_counted(subject):
    spec = subject.spec(trace={"level": "full", "max_steps": 5, "max_entries": 2})
    kwargs = generate_kwargs(subject.model, None, spec)
    subject.generate(**kwargs)
    for trace in traces(kwargs):
        assert len(trace.steps) == 5
        assert trace.dropped_steps == STEPS - 5
        assert trace.counts.tokens == STEPS
        assert max(len(step.entries) for step in trace.steps) == 2


def test_full_trace_of_a_row_without_methods(subject):
    kwargs = generate_kwargs(subject.model, None, {"trace": {"level": "full"}})
    output = subject.generate(**kwargs)
    assert torch.equal(output.sequences, subject.generate().sequences)
    for row, trace in enumerate(traces(kwargs)):
        assert [step.token for step in trace.steps] == new_tokens(output)[row].tolist()
        for index, step in enumerate(trace.steps):
            logits = output.logits[index][row]
            p = torch.softmax(logits.double(), dim=-1)
            assert step.entropy == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)
            assert not step.latent


def test_last_call_of_this_thread(subject):
    _, found = run(subject)
    assert traces() == found


def test_each_call_has_traces_of_its_own(subject):
    kwargs = generate_kwargs(subject.model, None, subject.spec())
    subject.generate(**kwargs, steps=3)
    first = traces(kwargs)
    subject.generate(**kwargs, steps=5)
    assert [trace.counts.tokens for trace in first] == [3, 3, 3]
    assert [trace.counts.tokens for trace in traces(kwargs)] == [5, 5, 5]


def test_no_call_no_traces(subject, monkeypatch):
    import threading

    monkeypatch.setattr(tokenlens.hf.generate, "_LAST", threading.local())
    kwargs = generate_kwargs(subject.model, None, subject.spec())
    with pytest.raises(LookupError, match="no generate"):
        traces(kwargs)
    with pytest.raises(LookupError, match="no generate"):
        traces()


def test_traces_in_the_middle_of_a_run(subject):
    seen = []

    class Looks(torch.nn.Module):
        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.shape[1] > len(PROMPTS[0]) + 2:
                seen.append(traces()[0].counts.tokens)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    kwargs = generate_kwargs(subject.model, None, subject.spec(), stopping_criteria=[Looks()])
    subject.generate(**kwargs, steps=5)
    # Criteria of the user's are asked before the tokens of their step are taken.
    assert seen == [2, 3, 4]
    assert traces(kwargs)[0].counts.tokens == 5
