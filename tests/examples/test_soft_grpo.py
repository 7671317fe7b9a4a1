"""The soft_grpo example: what a trainer scores is what the engine did, and a run goes on."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenlens.evaluation import Record  # noqa: E402  after what it needs

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "examples" / "soft_grpo"
NAMES = ("policy", "engines", "train", "curves", "measure")


@pytest.fixture(scope="module")
def code():
    """The example's modules, which are scripts beside each other and not a package."""
    sys.path.insert(0, str(CODE))
    try:
        yield type("Code", (), {name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(CODE))
        for name in NAMES:
            sys.modules.pop(name, None)


def options(code, folder, *more):
    small = ("--problems", "3", "--group", "4", "--limit", "60", "--dev", "3", "--dev-every", "2")
    return code.train.options_of([str(folder), *small, "--save-every", "1", *more])


@pytest.fixture(scope="module")
def rolled(code, tmp_path_factory):
    """A training that has rolled out once: itself, traces, prompts, rows."""
    training = code.train.Training(options(code, tmp_path_factory.mktemp("rolled")))
    traces, prompts = training.roll_out(training.pool[:3], 0)
    return training, traces, prompts, code.policy.Rows.of(traces, prompts, training.how.entries)


def off(code, training, rows, how=None, fed=None):
    """Largest |ratio - 1| of latent steps before an update."""
    with torch.no_grad():
        found = code.policy.log_probabilities(training.model, fed or rows, how or training.how)
    return code.policy.ratio_error(found, rows)


def test_the_ratio_is_one_before_the_first_update(code, rolled):
    training, _, _, rows = rolled
    assert int(rows.latent.sum()) > 300
    assert off(code, training, rows) < 1e-4


@pytest.mark.parametrize("wrong", [{"temperature": 0.9}, {"clamp_high": 1.0}, {"clamp_low": -0.5}])
def test_other_settings_than_the_rollout_s_are_seen(code, rolled, wrong):
    training, _, _, rows = rolled
    assert off(code, training, rows, dataclasses.replace(training.how, **wrong)) > 0.05


def test_visible_tokens_instead_of_mixtures_are_seen(code, rolled):
    # What a trainer does that knows nothing of mixtures: TRL's loss behind its rollout hook.
    training, _, _, rows = rolled
    first = torch.nn.functional.one_hot(torch.zeros_like(rows.tokens), rows.ids.shape[2])
    visible = dataclasses.replace(rows, weights=first.float() * rows.latent.unsqueeze(-1))
    assert off(code, training, rows, fed=visible) > 0.05


def test_tokens_have_the_probability_that_they_were_drawn_with(code, rolled):
    training, _, prompts, _ = rolled
    how = dataclasses.replace(training.how, soft=False)
    engine = code.engines.HuggingFace(training.model, training.tokenizer, how)
    traces = engine.roll_out(prompts[:4], range(4), 40)
    rows = code.policy.Rows.of(traces, prompts[:4], how.entries)
    assert not rows.latent.any()
    with torch.no_grad():
        new = code.policy.log_probabilities(training.model, rows, how)
    # A plain row's trace lists its most probable tokens before anything is drawn.
    seen = [
        (float(new[row, place]), dict(step.entries)[step.token])
        for row, (trace, prompt) in enumerate(zip(traces, prompts))
        for place, step in enumerate(trace.steps, len(prompt))
        if step.token in dict(step.entries)
    ]
    assert len(seen) > 100
    for found, probability in seen:
        assert found == pytest.approx(math.log(probability), abs=1e-4)


def test_groups_are_different_samples_and_equal_seeds_are_one(code, rolled):
    training, traces, prompts, _ = rolled
    told = [tuple(step.scores for step in trace.steps) for trace in traces]
    for start in range(0, 12, 4):
        assert prompts[start] == prompts[start + 3]
        assert len(set(told[start : start + 4])) == 4
    same = training.engine.roll_out(prompts[:4], [7] * 4, 24)
    noise = {tuple(step.scores for step in trace.steps if step.latent)[:5] for trace in same}
    assert len(noise) == 1


def test_rows_hold_what_the_traces_say(code, rolled):
    _, traces, prompts, rows = rolled
    for row, (trace, prompt) in enumerate(zip(traces, prompts)):
        end = len(prompt) + len(trace.steps)
        assert int(rows.lengths[row]) == end
        assert rows.tokens[row, :end].tolist() == [*prompt, *(s.token for s in trace.steps)]
        assert int(rows.scored[row].sum()) == len(trace.steps)
    sums = rows.weights.sum(2)[rows.latent]
    torch.testing.assert_close(sums, torch.ones_like(sums))
    picked = rows.pick(torch.tensor([2, 0]))
    assert torch.equal(picked.tokens[1], rows.tokens[0, : picked.tokens.shape[1]])
    cut = traces[0].model_copy(update={"steps": traces[0].steps[:-1]})
    with pytest.raises(ValueError, match="trace 0: got"):
        code.policy.Rows.of([cut], prompts[:1], 5)


def test_the_gradient_makes_what_was_noised_up_more_likely(code):
    from tokenlens.methods.rollout_scores import soft_grpo_log_probability

    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]], requires_grad=True)
    ids, chosen = torch.tensor([[0, 1, 2, -1]]), torch.log_softmax(logits[:, :3], 1).detach()
    noise = torch.tensor([[0.7, -0.4, 2.0]])
    scores = torch.cat([chosen + noise, torch.zeros(1, 1)], 1)
    soft_grpo_log_probability(logits, ids, scores, temperature=1.0).sum().backward()
    # d / d l_k = (1 - exp(-g_k)) / live, through the softmax over the recorded entries.
    of_weights = (1 - torch.exp(-noise)) / 3
    wanted = of_weights - chosen.exp() * of_weights.sum()
    torch.testing.assert_close(logits.grad[:, :3], wanted, rtol=0, atol=1e-4)
    assert float(logits.grad[0, 3]) == 0


def test_advantages_and_the_clipped_loss(code):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    found = code.policy.advantages(rewards)
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1.0, -1.0, 1.0]), rtol=0, atol=1e-3)
    assert not found[1:].any()
    old, scored = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    new = torch.log(torch.tensor([[1.0, 2.0, 0.5], [1.0, 9.0, 0.5]])).requires_grad_()
    value = code.policy.loss(new, old, torch.tensor([1.0, -1.0]), scored)
    # Good: 1, at most 1.2, 0.5 as it is. Bad: 1, at most 3 (the dual clip), at least 0.8.
    assert float(value.detach()) == pytest.approx(-(1 + 1.2 + 0.5) + (1 + 3 + 0.8))
    value.backward()
    assert new.grad[0].tolist() == pytest.approx([-1.0, 0.0, -0.5])
    assert new.grad[1].tolist() == pytest.approx([1.0, 0.0, 0.0])


def read(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["soft", "tokens"])
def test_two_steps_in_one_go_and_killed_between_them(code, tmp_path, method, monkeypatch):
    given = ("--method", method)
    code.train.Training(options(code, tmp_path / "whole", "--steps", "2", *given)).run()
    whole = read(tmp_path / "whole")
    assert [step["step"] for step in whole] == [0, 1]
    assert all(step["off"] < 1e-4 for step in whole)
    assert set(whole[1]["dev"]) == {"reward", "pass@4"}
    cut = code.train.Training(options(code, tmp_path / "cut", "--steps", "2", *given))
    keep = cut._keep

    def killed(found):
        keep(found)
        if cut.step == 1:
            # A line whose checkpoint never came.
            with (cut.folder / "log.jsonl").open("a") as file:
                file.write('{"step": 1, "rew')
            raise KeyboardInterrupt

    monkeypatch.setattr(cut, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = code.train.Training(options(code, tmp_path / "cut", "--steps", "2", *given))
    assert again.step == 1
    again.run()
    assert read(tmp_path / "cut") == whole
    first, other = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / one / "model").state_dict()
        for one in ("whole", "cut")
    )
    assert all(torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(SystemExit, match="holds another run"):
        code.train.Training(options(code, tmp_path / "cut", *given, "--rate", "0.1"))
    assert "</svg>" in code.curves.drawn([tmp_path / "whole", tmp_path / "cut"])


def test_the_table_pairs_problems_over_training_seeds(code):
    class Answers:
        def __init__(self, right):
            self._right = right

        def records(self, arm):
            return [
                Record(text="", tokens=1, finished=True, question=str(i), sample=0, correct=one)
                for i, one in enumerate(self._right)
            ]

    kinds = {
        "before": [Answers([False] * 4)],
        "SofT-GRPO": [Answers([True, True, False, False]), Answers([True] * 4)],
        "GRPO on tokens": [Answers([True] * 4)],
    }
    ways = code.measure.arms()
    assert [arm.spec.latent is not None for arm in ways] == [False] * 3 + [True] * 4
    head, _, line, *_ = code.measure.table(kinds, ways).splitlines()
    assert head.count("|") == 8
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1].startswith("0.0 [0.0,")
    assert cells[2].startswith("75.0 [")
    assert cells[4].startswith("+75.0 [+50.0, +100.0]")
    assert cells[6].startswith("-25.0 [")


@pytest.mark.parametrize("wrong", [("--group", "1"), ("--steps", "-1"), ("--engine-args", "{")])
def test_settings_that_make_no_sense_are_refused(code, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        options(code, tmp_path, *wrong)
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_trl_s_trainer_with_four_overrides_sees_the_same_ratio(code, tmp_path):
    pytest.importorskip("trl", reason="TRL is no dependency; pip install trl==1.16.0")
    sys.path.insert(0, str(CODE))
    try:
        import trl_trainer
    finally:
        sys.path.remove(str(CODE))
    trainer = trl_trainer.example(str(tmp_path), steps=3)
    trainer.train()
    # Micro-batches that TRL has shuffled.
    assert len(trainer.off) >= 3
    assert 0 < max(trainer.off) < 1e-4
    with pytest.raises(ValueError, match="num_iterations"):
        trl_trainer.example(str(tmp_path), steps=1, num_iterations=2)
    trainer._micro = None
    with pytest.raises(RuntimeError, match="before"):
        trainer._get_per_token_logps_and_entropies(trainer.model, torch.zeros(1, 4), None, 2)
