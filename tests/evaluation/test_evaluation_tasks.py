"""Tasks: questions from files, and what counts as an answer."""

import json

import pytest

from tokenlens.evaluation import Question, load_task
from tokenlens.evaluation.tasks import answer_part, score_choice, score_math


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_countdown_scores_with_its_verifier():
    task = load_task("countdown", limit=40)
    assert len(task.questions) == 40
    question = task.questions[0]
    assert not task.score(question, "<think>x</think>1+1=2<|im_end|>")
    assert task.questions == load_task("countdown", limit=40).questions
    assert not {q.id for q in task.questions} & {
        q.id for q in load_task("countdown-dev", limit=40).questions
    }


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>no</think>\n\n42<|im_end|>", "42"),
        ("42", "42"),
        ("<think>still", ""),
        ("<think>a</think>b</think>c</s>", "c"),
        ("in the prompt's thinking</think>7<｜end▁of▁sentence｜>", "7"),
    ],
)
def test_the_answer_is_what_follows_the_thinking(text, answer):
    assert answer_part(text) == answer


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("1/2", "</think>so \\boxed{\\frac{1}{2}}", True),
        ("1/2", "</think>so \\boxed{0.5}", True),
        ("(3, \\pi/2)", "</think>\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", True),
        ("18", "</think>Thus she makes \\boxed{18} dollars", True),
        ("18", "</think>\\boxed{19}", False),
        ("18", "<think>\\boxed{18}", False),
        ("18", "", False),
        ("1", "</think>\\boxed{__import__('os').getpid()}", False),
    ],
)
def test_math(answer, text, right):
    assert score_math(Question("1", "", answer), text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("</think>\\boxed{B}", True),
        ("</think>\\boxed{\\text{B}}", True),
        ("</think>The answer is **B**.", True),
        ("</think>Answer: (B)", True),
        ("</think>first \\boxed{B}, but no: \\boxed{C}", False),
        ("</think>Because", False),
    ],
)
def test_choice(text, right):
    assert score_choice(Question("1", "", "B"), text) is right


def test_questions_come_from_a_file(tmp_path):
    rows = [{"id": i, "question": f"{i}+1?", "answer": i + 1, "level": 3} for i in range(9)]
    task = load_task("gsm8k", data=write(tmp_path / "q.jsonl", *rows), limit=4)
    assert len(task.questions) == 4
    assert "\\boxed{}" in task.questions[0].prompt
    assert task.questions == load_task("gsm8k", data=tmp_path / "q.jsonl", limit=4).questions


def test_choices_are_shuffled_and_the_answer_with_them(tmp_path):
    rows = [
        {"id": i, "question": "?", "answer": "right", "choices": ["right", "w1", "w2", "w3"]}
        for i in range(40)
    ]
    task = load_task("gpqa", data=write(tmp_path / "q.jsonl", *rows))
    assert {q.answer for q in task.questions} == set("ABCD")
    assert all(f"{q.answer}) right" in q.prompt for q in task.questions)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("gsm8k", ["hello"], "line 1"),
        ("gsm8k", [{"id": 1, "question": "x"}], "'answer'"),
        ("gsm8k", [{"id": 1, "question": "x", "answer": 1}] * 2, "a second time"),
        ("gsm8k", [], "no question"),
        ("gpqa", [{"id": 1, "question": "x", "answer": "a"}], "choices"),
        ("gpqa", [{"id": 1, "question": "x", "answer": "a", "choices": ["b"]}], "not among"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, rows, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, data=write(tmp_path / "q.jsonl", *rows))


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="allowed: countdown"):
        load_task("math5000")
    with pytest.raises(ValueError, match="data: got nothing"):
        load_task("aime")
    with pytest.raises(ValueError, match="allowed: nothing"):
        load_task("countdown", data=tmp_path)
