"""Scores in processes of their own: whatever a score does, a batch and the run survive."""

import threading

import pytest
import scores_of_tests

from tokenlens.errors import ScoringError
from tokenlens.evaluation import Arm, Generated, Question, Task, evaluate, load_task
from tokenlens.evaluation.scoring import _POOL, score_all
from tokenlens.evaluation.tasks import score_math
from tokenlens.spec import DecodingSpec

QUESTION = Question("1", "?", "5")


def here(question, text):
    """A score by another name, so that it cannot be imported under its own."""
    return scores_of_tests.by_word(question, text)


here.__qualname__ = "nowhere.<locals>.here"
WAYS = pytest.mark.parametrize("score", [scores_of_tests.by_word, here], ids=["program", "fork"])


@WAYS
def test_one_that_hangs_or_dies_is_wrong_and_the_others_are_scored(score):
    texts = ["5", "hang", "5", "die", "6", "5"]
    found = score_all(score, [(QUESTION, text) for text in texts], patience=2)
    assert found == [True, False, True, False, False, True]


@WAYS
def test_what_a_score_raises_arrives(score):
    with pytest.raises(LookupError, match="no such score"):
        score_all(score, [(QUESTION, "5"), (QUESTION, "raise")])


def test_a_score_that_never_gives_a_verdict_ends_the_run_and_the_batch_stays(tmp_path):
    class Fives:
        name, calls = "hf", 0

        def generate(self, prompts, specs, sampling, *, max_new_tokens, seed):
            self.calls += 1
            return [Generated(text="5", tokens=1, finished=True) for _ in prompts]

        def close(self):
            pass

    engine, questions = Fives(), tuple(Question(str(i), "?", "5") for i in range(9))
    arms = [Arm(name="a", spec=DecodingSpec())]
    broken = Task("t", questions, scores_of_tests.always_dies, 5)
    with pytest.raises(ScoringError, match="none of 9 answers"):
        evaluate(engine, broken, arms, tmp_path)
    results = evaluate(engine, Task("t", questions, scores_of_tests.by_word, 5), arms, tmp_path)
    assert engine.calls == 1
    assert all(one.correct for one in results.records("a"))


def test_programs_are_kept_for_the_next_batch_and_take_another_score():
    jobs = [(QUESTION, "5")] * 3
    assert score_all(scores_of_tests.by_word, jobs) == [True] * 3
    (process,) = [one for one in _POOL._idle if one.name[1] == "by_word"][-1:]
    assert score_all(scores_of_tests.by_word, jobs) == [True] * 3
    assert process in _POOL._idle
    boxed = [(QUESTION, "\\boxed{5}"), (QUESTION, "\\boxed{6}")]
    assert score_all(score_math, boxed) == [True, False]


def test_many_threads_score_at_a_time():
    found = {}

    def work(number):
        jobs = [(QUESTION, str(one)) for one in range(10)]
        found[number] = score_all([scores_of_tests.by_word, here][number % 2], jobs)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert list(found.values()) == [[one == 5 for one in range(10)]] * 4


def test_countdown_is_scored_elsewhere_as_it_is_here():
    task = load_task("countdown", limit=4)
    jobs = [(question, "1+1=2") for question in task.questions]
    assert score_all(task.score, jobs) == [task.score(*job) for job in jobs] == [False] * 4
