"""Countdown for lm-evaluation-harness: questions and their exact check."""

from datasets import Dataset

from tokenlens.evaluation.countdown import Problem, check_answer, problems, prompt


def questions(size: int = 100, **_: object) -> dict[str, Dataset]:
    """Held-out problems of the test split, a quarter of them with three numbers."""
    three = size // 4
    chosen = problems("test", 3, three) + problems("test", 4, size - three)
    rows = [{"prompt": prompt(p), "numbers": list(p.numbers), "target": p.target} for p in chosen]
    return {"test": Dataset.from_list(rows)}


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """1 where the answer is right."""
    problem = Problem(tuple(doc["numbers"]), doc["target"])
    return {"solved": float(check_answer(problem, results[0]))}
