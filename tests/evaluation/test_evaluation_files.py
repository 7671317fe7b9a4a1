"""Question files as their publishers write them, in every format; what is missing is named."""

import csv
import json

import pytest

from tokenlens.evaluation import Question, load_task
from tokenlens.evaluation.tasks import box_use, score_choice, score_math

GSM8K = {"question": "6 times 7?", "answer": "6 x 7 = <<6*7=42>>1,042\n#### 1,042"}
MATH = {
    "problem": "Half?", "solution": "so \\boxed{\\frac{1}{2}}", "answer": "\\frac{1}{2}",
    "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json",
}  # fmt: skip
MATH_FULL = {key: MATH[key] for key in ("problem", "solution", "level")}
AIME_UPPER = {"ID": "2024-I-4", "Problem": "p?", "Solution": "s", "Answer": 33}
AIME_LOWER = {"id": 60, "problem": "p?", "solution": "s", "answer": "033", "url": "u"}
GPQA = {
    "Pre-Revision Question": "old?", "Question": "which?", "Correct Answer": "right",
    "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3",
    "Record ID": "rec1",
}  # fmt: skip
MMLU_PRO = {
    "question_id": 70, "question": "which?", "options": ["w", "x", "right", "N/A"], "answer": "C",
    "answer_index": 2, "cot_content": "", "category": "law",
}  # fmt: skip
SETS = {
    "gsm8k": ("gsm8k", GSM8K, "1", "1042"),
    "math500": ("math500", MATH, "test/algebra/1.json", "\\frac{1}{2}"),
    "math": ("math500", MATH_FULL, "1", "\\frac{1}{2}"),
    "aime_upper": ("aime", AIME_UPPER, "2024-I-4", "33"),
    "aime_lower": ("aime", AIME_LOWER, "60", "33"),
    "mmlu_pro": ("mmlu_pro", MMLU_PRO, "70", "C"),
    "ours": ("gsm8k", {"id": "a", "question": "q", "answer": 7}, "a", "7"),
}


def json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def json_list(path, rows):
    path.write_text(json.dumps(rows))


def json_columns(path, rows):
    path.write_text(json.dumps({key: [row[key] for row in rows] for key in rows[0]}))


def json_data(path, rows):
    path.write_text(json.dumps({"version": 1, "data": rows}))


def table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        for row in rows:
            cells = [json.dumps(v) if isinstance(v, list) else v for v in row.values()]
            writer.writerow(cells)


def parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pa.Table.from_pylist(rows), path)


FORMATS = {
    "jsonl": json_lines, "json": json_list, "lines.json": json_lines, "columns.json": json_columns,
    "data.json": json_data, "csv": table, "tsv": lambda p, r: table(p, r, "\t"), "parquet": parquet,
}  # fmt: skip


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_from_every_format(tmp_path, ending, name):
    task, row, ident, answer = SETS[name]
    path = tmp_path / f"q.{ending}"
    other = {**row, **{k: type(v)(9) for k, v in row.items() if k.lower() in ("id", "unique_id")}}
    if "question_id" in row:
        other["question_id"] = 71
    FORMATS[ending](path, [row, other])
    first, second = load_task(task, data=path).questions
    assert (first.id, first.answer) == (ident, answer)
    assert second.id != first.id
    assert "\\boxed{}" in first.prompt
    assert "1,042" not in first.prompt
    if task == "mmlu_pro":
        assert "C) right" in first.prompt
        assert "N/A" not in first.prompt


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_gpqa_s_columns_are_choices_with_the_right_one_anywhere(tmp_path, ending):
    rows = [{**GPQA, "Record ID": f"rec{i}"} for i in range(30)]
    FORMATS[ending](tmp_path / f"q.{ending}", rows)
    task = load_task("gpqa", data=tmp_path / f"q.{ending}")
    assert {q.answer for q in task.questions} == set("ABCD")
    assert all(f"{q.answer}) right" in q.prompt for q in task.questions)
    assert all(q.prompt.startswith("which?") for q in task.questions)


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("gsm8k", {"Frage": "x", "answer": "1"}, ["no question", "'problem'", "'Frage'"]),
        ("math500", {"problem": "x", "level": 1}, ["no answer", "'solution'", "'level'"]),
        ("math500", {"problem": "x", "solution": "no box"}, ["a solution without a box"]),
        ("gsm8k", {"question": "x", "answer": None}, ["no answer", "'question', 'answer'"]),
        ("gsm8k", {"question": "x", "answer": "so\n#### "}, ["nothing behind '####'"]),
        ("gpqa", {"Question": "x", "Correct Answer": "y"}, ["no choices", "'Correct Answer'"]),
        ("mmlu_pro", {"question": "x", "answer": "A"}, ["no options", "'choices'"]),
        ("mmlu_pro", {**MMLU_PRO, "answer": "K", "answer_index": 12}, ["letters ABC", "0 to 2"]),
        ("mmlu_pro", {**MMLU_PRO, "options": ["a"]}, ["1 choices"]),
        ("mmlu_pro", {**MMLU_PRO, "options": ["a"] * 11}, ["11 choices"]),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_missing_field_is_named_beside_what_was_found(tmp_path, task, row, words, ending):
    FORMATS[ending](tmp_path / f"q.{ending}", [row])
    with pytest.raises(ValueError) as caught:
        load_task(task, data=tmp_path / f"q.{ending}")
    assert f"q.{ending}, " in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


CODE = {
    "livecodebench": {"question_content": "x", "starter_code": "", "public_test_cases": "[]"},
    "humaneval": {"prompt": "def f():", "canonical_solution": "x", "entry_point": "f"},
    "mbpp": {"text": "x", "code": "y", "test_list": ["assert f()"]},
}


@pytest.mark.parametrize("name", CODE)
def test_sets_whose_answers_are_programs_are_refused_with_the_reason(tmp_path, name):
    json_lines(tmp_path / "q.jsonl", [CODE[name]])
    for task in ("gsm8k", "mmlu_pro", name):
        with pytest.raises(ValueError, match=r"programs.*run what a model"):
            load_task(task, data=tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.xlsx", b"x", r"\.jsonl, \.json, \.csv, \.tsv or \.parquet"),
        ("q.jsonl", b'{"a": "\xff"}', "UTF-8"),
        ("q.jsonl", b"[" * 100_000, "line 1"),
        ("q.json", b"[1]", "entry 1"),
        ("q.json", b'"x"', "list of JSON objects"),
        ("q.csv", b"question,answer\n1,2,3\n", "more cells"),
        ("q.csv", b'question,answer\n"x,2\n', "table with a header"),
        ("q.parquet", b"PAR1", "Parquet"),
        ("q.jsonl", b"\n\n", "no question"),
    ],
)
def test_files_that_are_not_what_they_say_are_named(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_task("gsm8k", data=tmp_path / name)
    assert name in str(caught.value)


def test_a_table_of_numbers_keeps_whole_ones(tmp_path):
    parquet(
        tmp_path / "q.parquet", [{"question": "x", "answer": 7.0}, {"question": "y", "answer": 1.5}]
    )
    assert [q.answer for q in load_task("gsm8k", data=tmp_path / "q.parquet").questions] == [
        "7",
        "1.5",
    ]


@pytest.mark.parametrize(
    ("prompt", "use"),
    [
        ("", "first"),
        ("x?\n\nPut your final answer within \\boxed{}.", "first"),
        ("Give the result in a box.", "first"),
        ("A box holds 3 balls. How many?", "last"),
        ("How many? End your answer with '#### NUMBER'.", "none"),
        ('Finish with "The answer is X".', "none"),
    ],
)
def test_what_a_box_is_worth_is_what_the_prompt_asks_for(prompt, use):
    assert box_use(prompt) == use
    both = "it may be \\boxed{6}. The answer is 5."
    assert score_math(Question("1", prompt, "5"), both) is (use != "first")
    assert score_math(Question("1", prompt, "6"), both) is (use == "first")
    assert score_math(Question("1", prompt, "6"), "so \\boxed{6}") is (use != "none")
    assert score_math(Question("1", prompt, "6"), "The answer is \\boxed{6}.")
    assert score_choice(Question("1", prompt, "B"), "thus \\boxed{B}") is (use != "none")


def test_a_prompt_of_one_s_own(tmp_path):
    json_lines(tmp_path / "q.jsonl", [{**GSM8K, "question": "a {b} c?"}])
    (question,) = load_task("gsm8k", data=tmp_path / "q.jsonl", prompt="Q: {question}").questions
    assert question.prompt == "Q: a {b} c?"
    with pytest.raises(ValueError, match=r"prompt: got 'no place'"):
        load_task("gsm8k", data=tmp_path / "q.jsonl", prompt="no place")
