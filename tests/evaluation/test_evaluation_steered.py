"""Controllers as arms of an evaluation, beside a vote of their tokens."""

import json

import pytest
from typer.testing import CliRunner

from tokenlens.cli import app
from tokenlens.controllers import parse_controller
from tokenlens.errors import SpecError
from tokenlens.evaluation import ArmSampling, arms_of, evaluate, load_task, open_engine, rows
from tokenlens.spec import preset

DEER = {
    "policy": {
        "policy": "deer", "words": ["wait"], "probe_text": "\n</think>\n\n",
        "probe_stops": ["zzz"], "threshold": 0.8,
    }
}  # fmt: skip
VOTE = {"policy": {"policy": "self_consistency", "n": 3}}
WARM = ArmSampling(temperature=0.8)


def test_a_controller_is_beside_a_vote_of_its_tokens():
    specs = {"deer": parse_controller(DEER), "soft": preset("tiny-soft")}
    arms = {arm.name: arm for arm in arms_of(specs, WARM)}
    vote = arms["a vote of deer's tokens"]
    assert (vote.controls, vote.cost_of, vote.sampling) == (("deer",), "deer", WARM)
    assert vote.with_lines(3.4).steer.policy.n == 3
    assert vote.with_lines(0.2).steer.policy.n == 1
    assert "deer" in arms["greedy"].controls
    # What is stored of an ordinary arm is what it was.
    assert "steer" not in arms["soft"].model_dump(mode="json")


def test_all_tokens_are_counted_and_the_vote_is_given_as_many(tmp_path):
    engine = open_engine("hf", "tiny-reasoner-small")
    task = load_task("countdown", limit=6)
    arms = arms_of({"vote": parse_controller(VOTE)}, WARM)
    folder = tmp_path / "run"
    results = evaluate(engine, task, arms, folder, batch_size=6, max_new_tokens=120)
    by_name = {arm.name: arm for arm in results.arms}
    tokens = {row.arm: row.tokens.mean for row in rows(results)}
    lines = next(name for name in tokens if name.startswith("sampling"))
    own = by_name["a vote of vote's tokens"]
    assert own.steer.policy.n == max(1, round(tokens["vote"] / tokens[lines])) > 1
    for record in results.records("vote"):
        assert 0 < record.discarded_tokens < record.tokens
        assert record.thinking_tokens <= record.tokens - record.discarded_tokens
    # Seeds hang on the question alone: it goes on where it was, and batches decide nothing.
    again = evaluate(engine, task, arms, folder, batch_size=6, max_new_tokens=120)
    apart = evaluate(engine, task, arms, tmp_path / "apart", batch_size=2, max_new_tokens=120)
    assert again.records("vote") == results.records("vote") == apart.records("vote")


def test_what_cannot_be_steered_is_refused(tmp_path):
    engine = open_engine("hf", "tiny-reasoner-small")
    task = load_task("countdown", limit=2)

    class Another:
        name = "vllm"
        generate = engine.generate

    arms = arms_of({"vote": parse_controller(VOTE)}, WARM)
    with pytest.raises(SpecError, match=r"for engine vllm.*measured with the engine hf"):
        evaluate(Another(), task, arms, tmp_path / "a")
    arms = arms_of({"trimr": parse_controller("trimr")}, WARM, controls=False)
    with pytest.raises(SpecError, match="a second one"):
        evaluate(engine, task, arms, tmp_path / "b")
    arms = arms_of({"vote": parse_controller(VOTE)}, ArmSampling(min_p=0.1), controls=False)
    with pytest.raises(SpecError, match="min_p"):
        evaluate(engine, task, arms, tmp_path / "c")


def test_the_command_takes_them(tmp_path):
    path = tmp_path / "vote.json"
    path.write_text(json.dumps(VOTE))
    out = tmp_path / "out"
    command = ["eval", "--model", "tiny-reasoner-small", "--limit", "2", "--max-new-tokens", "60",
               "--no-controls", "--specs", str(path), "tiny-soft", "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    report = (out / "report.md").read_text()
    assert "| vote |" in report
    assert "thrown away ones included" in report
    done = CliRunner().invoke(app, [*command[:-3], '{"policy": {"policy": "deer", "x": 1}}'])
    assert done.exit_code != 0
    assert "Traceback" not in done.output
