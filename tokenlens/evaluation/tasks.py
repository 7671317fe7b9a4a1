"""Questions and how their answers are scored; a task is a name, questions and a function.

Countdown comes with the package. The others are read from files that you have: JSON Lines with
``id``, ``question`` and ``answer``, and ``choices`` where the question is multiple choice.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenlens.evaluation import countdown, math_score
from tokenlens.evaluation.answers import answer_part, letter_of, math_answer, plain
from tokenlens.trace.files import open_regular


@dataclass(frozen=True)
class Question:
    """One question, as the user's message, and what its answer must be."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A set of questions.

    Parameters
    ----------
    score
        Whether a text answers the question. An evaluation hands it what follows the thinking, as
        the spec's markers say (an :class:`tokenlens.evaluation.answers.Answer`); of any other text
        the tasks here cut off the thinking themselves, between ``<think>`` and ``</think>``.
    max_new_tokens
        What an answer may take where the user says nothing.
    """

    name: str
    questions: tuple[Question, ...]
    score: Callable[[Question, str], bool]
    max_new_tokens: int


def load_task(
    name: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Task:
    """A task by its name.

    Parameters
    ----------
    name
        ``countdown`` or ``countdown-dev``, or one of ``math500``, ``aime``, ``gsm8k``, ``gpqa``.
    data
        The file with the questions, for all but Countdown.
    limit
        How many of its questions; a choice that ``seed`` makes.

    Raises
    ------
    ValueError
        The name, the file or the number is wrong; names what is allowed.
    """
    if name in ("countdown", "countdown-dev"):
        if data is not None:
            raise ValueError(f"data: got {data}; allowed: nothing, {name} makes its own questions")
        return _countdown(name, limit or 200, seed)
    if name not in FILE_TASKS:
        known = ", ".join(["countdown", "countdown-dev", *FILE_TASKS])
        raise ValueError(f"task: got {name!r}; allowed: {known}")
    if data is None:
        raise ValueError(
            f"data: got nothing; allowed: a JSON Lines file with the questions of {name}, each with"
            " id, question and answer"
        )
    template, score, tokens = FILE_TASKS[name]
    if score is score_math:
        # Before anything is generated, not when it is to be scored.
        math_score.check()
    questions = _read(data, template, seed, choices=name == "gpqa")
    if limit is not None and limit < len(questions):
        questions = random.Random(f"{name}:{seed}").sample(questions, limit)
    return Task(name, tuple(questions), score, tokens)


def _countdown(name: str, size: int, seed: int) -> Task:
    split: countdown.Split = "dev" if name.endswith("dev") else "test"
    three = size // 4
    chosen = countdown.problems(split, 3, three, seed) + countdown.problems(
        split, 4, size - three, seed
    )
    by_id = {}
    for problem in chosen:
        by_id[f"{','.join(map(str, problem.numbers))}={problem.target}"] = problem
    questions = tuple(Question(i, countdown.prompt(p), str(p.target)) for i, p in by_id.items())
    return Task(name, questions, partial(_score_countdown, by_id), 320)


def _score_countdown(problems: dict[str, countdown.Problem], question: Question, text: str) -> bool:
    return countdown.check_answer(problems[question.id], answer_part(text))


def _read(path: Path, template: str, seed: int, choices: bool) -> list[Question]:
    found: dict[str, Question] = {}
    with open_regular(path) as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                data = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                values = {key: str(data[key]) for key in ("id", "question", "answer")}
                options = [str(option) for option in data["choices"]] if choices else []
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path.name}, line {number}: got {type(error).__name__}: {error}; allowed: a"
                    " JSON object with id, question, answer"
                    + (" and choices, the right one among them" if choices else "")
                ) from None
            if values["id"] in found:
                raise ValueError(f"{path.name}, line {number}: id {values['id']!r} a second time")
            found[values["id"]] = _question(path, number, template, values, options, seed)
    if not found:
        raise ValueError(f"{path.name}: got no question; allowed: one JSON object a line")
    return list(found.values())


def _question(
    path: Path, number: int, template: str, values: dict[str, str], options: list[str], seed: int
) -> Question:
    prompt, answer = values["question"], values["answer"]
    if options:
        if answer not in options:
            raise ValueError(f"{path.name}, line {number}: the answer is not among the choices")
        # The right answer's place must not be the same in every question.
        random.Random(f"{values['id']}:{seed}").shuffle(options)
        letters = "ABCDEFGHIJ"[: len(options)]
        prompt += "\n\n" + "\n".join(f"{a}) {text}" for a, text in zip(letters, options))
        answer = letters[options.index(answer)]
    return Question(values["id"], template.format(question=prompt), answer)


def score_math(question: Question, text: str) -> bool:
    """Whether the answer is mathematically equal (math-verify: parsed, never evaluated as code).

    The answer is what :func:`tokenlens.evaluation.answers.math_answer` finds.
    """
    math_score.check()
    found = math_answer(answer_part(text))
    return found is not None and math_score.equal(f"\\boxed{{{plain(question.answer)}}}", found)


def score_choice(question: Question, text: str) -> bool:
    """Whether the letter that :func:`tokenlens.evaluation.answers.letter_of` finds is right."""
    return letter_of(answer_part(text)) == question.answer


BOXED = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
LETTER = (
    "{question}\n\nPlease reason step by step, and put your answer's letter within \\boxed{{}}."
)
FILE_TASKS: dict[str, tuple[str, Callable[[Question, str], bool], int]] = {
    "math500": (BOXED, score_math, 8192),
    "aime": (BOXED, score_math, 32_768),
    "gsm8k": (BOXED, score_math, 4096),
    "gpqa": (LETTER, score_choice, 16_384),
}
"""Tasks from files: the prompt, the score, and the tokens of an answer."""
