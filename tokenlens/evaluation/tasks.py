"""Questions and how their answers are scored; a task is a name, questions and a function.

Countdown comes with the package. The others are read from files that you have, with the fields
that their publishers gave them, or with ``id``, ``question`` and ``answer``, and ``choices`` where
the question is multiple choice.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenlens.evaluation import countdown, math_score
from tokenlens.evaluation.answers import BoxUse, answer_part, boxes, letter_of, math_answer, plain
from tokenlens.evaluation.question import Question
from tokenlens.evaluation.question_files import (
    QuestionRow,
    field,
    lacking,
    options,
    refuse_programs,
    rows,
)
from tokenlens.evaluation.scoring import PATIENCE


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
    patience
        Seconds that one score may take.
    """

    name: str
    questions: tuple[Question, ...]
    score: Callable[[Question, str], bool]
    max_new_tokens: int
    patience: float = PATIENCE


def load_task(
    name: str,
    *,
    data: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompt: str | None = None,
) -> Task:
    """A task by its name.

    Parameters
    ----------
    name
        ``countdown`` or ``countdown-dev``, or one of ``math500``, ``aime``, ``gsm8k``, ``gpqa``,
        ``mmlu_pro``.
    data
        The file with the questions, for all but Countdown: JSON, JSON Lines, CSV or Parquet.
    limit
        How many of its questions; a choice that ``seed`` makes.
    prompt
        What is asked instead of the task's own words, with ``{question}`` in it.

    Raises
    ------
    ValueError
        The name, the file, the number or the prompt is wrong; names what is allowed.
    """
    if name in ("countdown", "countdown-dev"):
        if data is not None:
            raise ValueError(f"data: got {data}; allowed: nothing, {name} makes its own questions")
        if prompt is not None:
            raise ValueError(f"prompt: got a text; allowed: nothing, {name} has its own")
        return _countdown(name, limit or 200, seed)
    if _is_code(name):
        raise ValueError(
            f"task: got {name!r}, whose answers are programs: to score them is to run what a model"
            f" wrote, which tokenlens does not do; allowed: {', '.join(FILE_TASKS)}"
        )
    if name not in FILE_TASKS:
        known = ", ".join(["countdown", "countdown-dev", *FILE_TASKS])
        raise ValueError(f"task: got {name!r}; allowed: {known}")
    if data is None:
        raise ValueError(
            "data: got nothing; allowed: a JSON Lines, JSON, CSV or Parquet file with the questions"
            f" of {name}"
        )
    if prompt is not None and "{question}" not in prompt:
        raise ValueError(f"prompt: got {prompt!r}; allowed: a text with {{question}} in it")
    form = FILE_TASKS[name]
    if form.score is score_math:
        # Before anything is generated, not when it is to be scored.
        math_score.check()
    questions = _read(data, form, prompt or form.prompt, seed)
    if limit is not None and limit < len(questions):
        questions = random.Random(f"{name}:{seed}").sample(questions, limit)
    return Task(name, tuple(questions), form.score, form.max_new_tokens)


def _is_code(name: str) -> bool:
    plain_name = re.sub(r"[^a-z]", "", name.lower())
    return plain_name.startswith(("livecodebench", "humaneval", "mbpp", "apps", "bigcodebench"))


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
    return Task(name, questions, score_countdown, 320)


def score_countdown(question: Question, text: str) -> bool:
    """Whether equations solve a problem, whose numbers and target are the question's id."""
    numbers, _, target = question.id.partition("=")
    problem = countdown.Problem(tuple(map(int, numbers.split(","))), int(target))
    return countdown.check_answer(problem, answer_part(text))


def _read(path: Path, form: "FileTask", template: str, seed: int) -> list[Question]:
    found: dict[str, Question] = {}
    for number, row in enumerate(rows(path), 1):
        refuse_programs(row)
        question = field(row, QUESTION)
        if question is None:
            raise lacking(row, "question", QUESTION)
        # Some sets have no ids: their rows are counted.
        name = field(row, ID) or str(number)
        if name in found:
            raise ValueError(f"{row.place}: id {name!r} a second time")
        if form.choices is None:
            answer = _answer(row, form)
        else:
            texts, answer = form.choices(row, f"{name}:{seed}")
            lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, texts)]
            question += "\n\n" + "\n".join(lines)
        found[name] = Question(name, template.replace("{question}", question), answer)
    if not found:
        raise ValueError(f"{path.name}: got no question; allowed: at least one")
    return list(found.values())


def _answer(row: QuestionRow, form: "FileTask") -> str:
    """The answer of a row, without the solution before it."""
    answer = field(row, ANSWER)
    if answer is None:
        solution = field(row, SOLUTION)
        if solution is None:
            raise lacking(row, "answer", (*ANSWER, *SOLUTION))
        found = boxes(solution)
        if not found:
            raise ValueError(
                f"{row.place}: got no answer, and a solution without a box; allowed: a value in one"
                f" of the fields {', '.join(map(repr, ANSWER))}"
            )
        answer = found[-1][2]
    if "####" in answer:
        # GSM8K has its solution before the answer.
        answer = answer.rpartition("####")[2].strip().lstrip("$")
        if not answer:
            raise ValueError(f"{row.place}: got nothing behind '####'; allowed: the answer")
        answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    return answer.lstrip("0") or "0" if form.whole and answer.isdecimal() else answer


def _named_choices(row: QuestionRow, seed: str) -> tuple[list[str], str]:
    """GPQA's columns, or ``choices`` with the right one among them; in a shuffled order."""
    right = field(row, CORRECT)
    wrong = [one for i in range(1, 10) if (one := field(row, (f"Incorrect Answer {i}",)))]
    if right is not None and wrong:
        texts = [right, *wrong]
    else:
        found, right = options(row, CHOICES), field(row, ANSWER)
        if found is None:
            raise lacking(row, "choices", ("Correct Answer", "Incorrect Answer 1", *CHOICES))
        if right is None:
            raise lacking(row, "answer", ANSWER)
        texts = found
    if right not in texts:
        raise ValueError(f"{row.place}: the answer is not among the choices")
    # The right answer's place must not be the same in every question.
    random.Random(seed).shuffle(texts)
    return _few(row, texts), LETTERS[texts.index(right)]


def _lettered_choices(row: QuestionRow, seed: str) -> tuple[list[str], str]:
    """MMLU-Pro's options, in their order; the answer is a letter, an index or one of the texts."""
    found = options(row, CHOICES)
    if found is None:
        raise lacking(row, "options", CHOICES)
    # Filled up to ten in some editions.
    while found and found[-1] == "N/A":
        found.pop()
    letters = LETTERS[: len(_few(row, found))]
    answer, index = field(row, ANSWER), field(row, ("answer_index",))
    if answer is not None and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        chosen = answer.strip().upper()
    elif answer in found:
        chosen = letters[found.index(answer)]
    else:
        index = index or answer
        if index is None:
            raise lacking(row, "answer", (*ANSWER, "answer_index"))
        if not index.isdecimal() or int(index) >= len(letters):
            raise ValueError(
                f"{row.place}: got the answer {index!r}; allowed: one of the letters {letters}, or"
                f" an index from 0 to {len(letters) - 1}"
            )
        chosen = letters[int(index)]
    return found, chosen


def _few(row: QuestionRow, texts: list[str]) -> list[str]:
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{row.place}: got {len(texts)} choices; allowed: 2 to {len(LETTERS)}")
    return texts


def score_math(question: Question, text: str) -> bool:
    """Whether the answer is mathematically equal (math-verify: parsed, never evaluated as code).

    The answer is what :func:`tokenlens.evaluation.answers.math_answer` finds.
    """
    math_score.check()
    found = math_answer(answer_part(text), box_use(question.prompt))
    return found is not None and math_score.equal(f"\\boxed{{{plain(question.answer)}}}", found)


# Called by a process that scores, before its time is taken.
score_math.prepare = math_score.prepare  # type: ignore[attr-defined]


def score_choice(question: Question, text: str) -> bool:
    """Whether the letter that :func:`tokenlens.evaluation.answers.letter_of` finds is right."""
    return letter_of(answer_part(text), box_use(question.prompt)) == question.answer


def box_use(prompt: str) -> BoxUse:
    """What a box is worth: it comes first where the prompt asks for one, last where it does not.

    Where the prompt asks for another form, a box by itself is no answer.
    """
    if ASKS_FOR_BOX.search(prompt) or not re.search(r"[^\W\d_]", prompt):
        # A prompt without words asks for nothing.
        return "first"
    if ASKS_OTHERWISE.search(prompt):
        return "none"
    return "last"


ASKS_FOR_BOX = re.compile(r"\\f?box|\bboxed\b|\b(?:in|within|inside|into) (?:a|the) box\b", re.I)
ASKS_OTHERWISE = re.compile(
    r"####|<answer>|[\"'`*](?:the )?(?:final )?answer(?: is|:)"
    r"|\b(?:final )?answer (?:after|behind|following|in the form)\b"
    r"|\b(?:final )?answer on (?:a|the) (?:last|new|separate)\b"
    r"|\bend(?:s|ing)? (?:your (?:answer|response) )?with\b",
    re.I,
)
QUESTION = ("question", "problem", "prompt", "query", "input")
ANSWER = ("answer", "final_answer", "expected_answer", "target")
SOLUTION = ("solution",)
ID = ("id", "unique_id", "question_id", "Record ID", "problem_id", "problem_idx")
CORRECT = ("Correct Answer",)
CHOICES = ("choices", "options")
LETTERS = "ABCDEFGHIJ"
BOXED = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = "{question}\n\nPlease reason step by step, and put your answer's letter within \\boxed{}."


class FileTask(NamedTuple):
    """A task from a file.

    ``choices`` makes of a row its options and the letter of the right one; ``whole`` says that
    answers are whole numbers, which may be written with zeros before them.
    """

    prompt: str
    score: Callable[[Question, str], bool]
    max_new_tokens: int
    choices: Callable[[QuestionRow, str], tuple[list[str], str]] | None = None
    whole: bool = False


FILE_TASKS: dict[str, FileTask] = {
    "math500": FileTask(BOXED, score_math, 8192),
    "aime": FileTask(BOXED, score_math, 32_768, whole=True),
    "gsm8k": FileTask(BOXED, score_math, 4096),
    "gpqa": FileTask(LETTER, score_choice, 16_384, _named_choices),
    "mmlu_pro": FileTask(LETTER, score_choice, 8192, _lettered_choices),
}
"""Tasks from files."""
