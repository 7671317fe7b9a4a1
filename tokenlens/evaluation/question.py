"""A question of a task. Knows no task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question, as the user's message, and what its answer must be."""

    id: str
    prompt: str
    answer: str
