"""Evaluations: controls, records, and a run that was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tokenlens.evaluation import (
    GREEDY,
    ArmSampling,
    FolderError,
    Generated,
    arms_of,
    comparisons,
    evaluate,
    load_task,
    open_engine,
    rows,
)
from tokenlens.spec import (
    DecodingSpec,
    NoThinking,
    PhaseConfig,
    RandomRoute,
    SoftThinking,
    Top1,
    preset,
)

SPECS = {"soft": preset("tiny-soft"), "gumbel": preset("tiny-gumbel")}
SMALL = "tiny-reasoner-small"


class Countdowner:
    """An engine that answers by chance, from its arguments alone, and fails when told to."""

    name = "hf"

    def __init__(self, fail_after=10**9):
        self.calls, self.prompts, self.fail_after = 0, [], fail_after

    def generate(self, prompts, specs, sampling, *, max_new_tokens, seed):
        self.calls += 1
        if self.calls > self.fail_after:
            raise KeyboardInterrupt
        self.prompts += [(p, s.seed, str(s.methods), str(sampling)) for p, s in zip(prompts, specs)]
        found = []
        for prompt, spec in zip(prompts, specs):
            rng = random.Random(f"{prompt}{spec}{sampling}{seed}")
            tokens = rng.randrange(20, max_new_tokens)
            latent = tokens // 4 if any(m.method == "soft_thinking" for m in spec.methods) else 0
            found.append(
                Generated(
                    text="</think>1+1=2<|im_end|>", tokens=tokens, thinking_tokens=tokens - 10,
                    latent_steps=latent, finished=rng.random() < 0.9,
                )
            )  # fmt: skip
        return found

    def close(self):
        pass


def run(folder, engine, **settings):
    task = load_task("countdown", limit=20)
    return evaluate(
        engine, task, arms_of(SPECS), folder, **({"samples": 3, "batch_size": 8} | settings)
    )


def contents(folder):
    """Every record, without the wall times."""
    return {
        path.name: [line for line in path.read_text().splitlines() if '"seconds"' not in line]
        for path in sorted((folder / "records").iterdir())
    }


def test_controls_come_by_themselves():
    arms = {arm.name: arm for arm in arms_of(SPECS, ArmSampling(temperature=0.9))}
    assert set(arms) == {
        "soft", "gumbel", "greedy", "sampling, T 0.6, top-k 30, top-p 0.95", "no_thinking",
        "soft + top1", "soft + random_route", "gumbel + top1", "gumbel + random_route",
    }  # fmt: skip
    assert arms["greedy"].sampling == GREEDY
    assert arms["greedy"].spec == DecodingSpec(phase=SPECS["soft"].phase)
    # The temperature of the concept weights, not the one of the answers.
    matched, soft = arms["sampling, T 0.6, top-k 30, top-p 0.95"].sampling, SPECS["soft"].methods[0]
    assert (matched.temperature, matched.top_k) == (soft.temperature, soft.top_k)
    assert arms["soft"].sampling.temperature == 0.9
    assert arms["greedy"].controls == ("soft", "gumbel")
    assert arms["no_thinking"].spec.methods == (NoThinking(),)
    assert arms["gumbel + top1"].spec.methods == (*SPECS["gumbel"].methods, Top1())
    assert arms["gumbel + random_route"].share_of == "gumbel"


def test_a_spec_without_a_latent_method_has_no_latent_controls():
    names = [arm.name for arm in arms_of({"plain": DecodingSpec()})]
    assert names == ["plain", "greedy", "sampling, T 0.6, top-p 0.95", "no_thinking"]


def test_two_meanings_of_one_name_stay_apart():
    marks = PhaseConfig(think_start="<t>", think_end="</t>")
    other = DecodingSpec(methods=(SoftThinking(),), phase=marks)
    names = [arm.name for arm in arms_of({"a": SPECS["soft"], "b": other})]
    assert {"no_thinking", "no_thinking #2", "greedy", "greedy #2"} <= set(names)


@pytest.mark.parametrize(("measured", "share"), [(0.1234, 0.123), (0.97, 0.5)])
def test_random_route_gets_the_measured_share(measured, share):
    arm = next(arm for arm in arms_of(SPECS) if arm.share_of == "soft").with_share(measured)
    assert arm.spec.methods[-1] == RandomRoute(latent_share=share)
    assert sum(m.method == "random_route" for m in arm.spec.methods) == 1


def test_every_question_is_answered_once_by_every_arm(tmp_path):
    engine = Countdowner()
    results = run(tmp_path, engine)
    assert engine.calls == len(results.arms) * 8
    assert len(set(engine.prompts)) == len(engine.prompts) == len(results.arms) * 60
    for arm in results.arms:
        pairs = [(r.question, r.sample) for r in results.records(arm.name)]
        assert len(set(pairs)) == len(pairs) == 60
    resolved = next(arm for arm in results.arms if arm.name == "soft + random_route")
    assert 0.2 < resolved.spec.methods[-1].latent_share < 0.4


def test_an_answer_that_was_cut_off_is_wrong(tmp_path):
    results = run(tmp_path, Countdowner())
    records = results.records("soft")
    assert any(not r.finished for r in records)
    assert not any(r.correct for r in records if not r.finished)


@pytest.mark.parametrize("after", [0, 1, 9, 37])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, after):
    whole = Countdowner()
    run(tmp_path / "whole", whole)
    first, second = Countdowner(after), Countdowner()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", first)
    run(tmp_path / "cut", second)
    assert first.prompts + second.prompts == whole.prompts
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    again = Countdowner()
    run(tmp_path / "cut", again)
    assert again.calls == 0


def test_a_batch_that_was_cut_while_written_is_done_again(tmp_path):
    run(tmp_path / "whole", Countdowner())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Countdowner(12))
    newest = sorted((tmp_path / "cut" / "records").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-50])
    engine = Countdowner()
    run(tmp_path / "cut", engine)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert engine.calls == 9 * 8 - 11


def test_another_evaluation_s_folder_is_refused(tmp_path):
    run(tmp_path, Countdowner())
    before = contents(tmp_path)
    with pytest.raises(FolderError, match=r"batch_size.*seed|seed.*batch_size"):
        run(tmp_path, Countdowner(), seed=1, batch_size=4)
    settings = json.loads((tmp_path / "settings.json").read_text())
    settings["versions"]["torch"] = "0.1"
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(FolderError, match="version of torch"):
        run(tmp_path, Countdowner())
    assert contents(tmp_path) == before


def test_rows_and_comparisons(tmp_path):
    results = run(tmp_path, Countdowner())
    table = {row.arm: row for row in rows(results)}
    assert list(table["soft"].pass_at) == [1, 2, 3]
    assert table["soft"].pass_at[1] == table["soft"].accuracy.mean
    assert table["greedy"].is_control
    assert table["greedy"].latent_share == 0
    found = [(one.arm, one.control) for one in comparisons(results)]
    assert ("soft", "soft + top1") in found
    assert ("soft", "gumbel + top1") not in found
    assert len(found) == 10
    assert all(one.p_holm >= one.accuracy.p for one in comparisons(results))


def real(folder, seed=0):
    arms = arms_of({"gumbel": SPECS["gumbel"]})
    return evaluate(
        open_engine("hf", SMALL), load_task("countdown", limit=6), arms, folder,
        model=SMALL, samples=2, batch_size=5, seed=seed, max_new_tokens=90,
    )  # fmt: skip


def test_equal_seeds_give_equal_numbers(tmp_path):
    first = real(tmp_path / "a")
    real(tmp_path / "b")
    real(tmp_path / "c", seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    table = {row.arm: row for row in rows(first)}
    assert table["greedy"].tokens.mean > 10
    assert table["greedy"].thinking_tokens > 5
    assert table["gumbel"].latent_share > 0.5
    assert table["gumbel + top1"].latent_share == 0
    assert table["no_thinking"].thinking_tokens <= 2


def test_a_killed_process_resumes(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from test_evaluation_run import real
        real(Path({str(tmp_path / "cut")!r}))
    """)
    process = subprocess.Popen([sys.executable, "-c", script])
    records = tmp_path / "cut" / "records"
    # Beside the records lie answers that are not scored yet.
    while process.poll() is None and not any(one.stat().st_size for one in records.glob("*.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    left = sum(len(lines) for lines in contents(tmp_path / "cut").values())
    assert 0 < left < 6 * 12
    real(tmp_path / "cut")
    real(tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
