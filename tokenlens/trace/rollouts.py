"""Rollouts for trainers: full traces in one safetensors file.

Tensors, for ``N`` generated tokens of all requests one after another:

===================  ====================  ====================================================
name                 shape and dtype       what
===================  ====================  ====================================================
``request``          ``[N]`` int64         index of the request
``position``         ``[N]`` int64         of the token in its sequence, prompt included
``token``            ``[N]`` int64         the visible token
``thinking``         ``[N]`` bool          the phase that the token was decided in
``latent``           ``[N]`` bool          fed as a mixture
``ids``              ``[N, K]`` int64      entries of the concept token; -1: none
``weights``          ``[N, K]`` float32    as they were fed
``scores``           ``[N, K]`` float32    ``y`` of SofT-GRPO and Latent-GRPO; 0 elsewhere
``log_probability``  ``[N]`` float32       of the step's noise; 0 where it has none
``prompt``           ``[P]`` int64         the prompts' tokens one after another
``prompt_request``   ``[P]`` int64         whose they are
===================  ====================  ====================================================

Metadata: ``format`` (``tokenlens-rollouts``), ``version``, ``specs``, the requests' specs as JSON
with the seeds that were used, and ``samples``, a JSON list: 0, or which of the samples that share
their spec's seed a request was (``tokenlens_kernels.philox.sample_seed``). A discrete token has one
entry, itself, and its log-probability is the trainer's to take.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenlens.spec import DecodingSpec, parse_spec
from tokenlens.trace.files import replacing
from tokenlens.trace.records import Trace

FORMAT, VERSION = "tokenlens-rollouts", "1"
TENSORS = (
    *("request", "position", "token", "thinking", "latent", "ids", "weights", "scores"),
    *("log_probability", "prompt", "prompt_request"),
)


@dataclass(frozen=True)
class Rollouts:
    """The content of a file: arrays by name, and a spec for each request."""

    arrays: dict[str, NDArray[np.generic]]
    specs: tuple[DecodingSpec, ...]
    samples: tuple[int, ...] = ()


def save_rollouts(
    path: str | Path, traces: Sequence[Trace], prompts: Sequence[Sequence[int]]
) -> None:
    """Write the traces of a batch.

    Parameters
    ----------
    traces
        Complete ones: ``trace.level: full`` and no step dropped.
    prompts
        The prompts' token ids, without padding.

    Raises
    ------
    ValueError
        A trace has no steps or lacks some, or there are not as many prompts as traces.
    """
    from safetensors.numpy import save

    if len(prompts) != len(traces):
        raise ValueError(f"prompts: got {len(prompts)}; allowed: one a trace, {len(traces)}")
    for row, trace in enumerate(traces):
        if len(trace.steps) != trace.counts.tokens:
            raise ValueError(
                f"traces[{row}]: got {len(trace.steps)} steps of {trace.counts.tokens} tokens;"
                " allowed: all. Ask for trace.level full and enough max_steps"
            )
    steps = [(row, step) for row, trace in enumerate(traces) for step in trace.steps]
    width = max((len(step.entries) for _, step in steps if step.latent), default=1)
    ids = np.full((len(steps), width), -1, dtype=np.int64)
    weights = np.zeros((len(steps), width), dtype=np.float32)
    scores = np.zeros((len(steps), width), dtype=np.float32)
    for place, (_, step) in enumerate(steps):
        entries = step.entries if step.latent else ((step.token, 1.0),)
        ids[place, : len(entries)] = [i for i, _ in entries]
        weights[place, : len(entries)] = [w for _, w in entries]
        if step.latent and step.scores:
            scores[place, : len(step.scores)] = step.scores
    arrays: dict[str, NDArray[np.generic]] = {
        "request": np.array([row for row, _ in steps], dtype=np.int64),
        "position": np.array([step.position for _, step in steps], dtype=np.int64),
        "token": np.array([step.token for _, step in steps], dtype=np.int64),
        "thinking": np.array([step.phase == "thinking" for _, step in steps], dtype=bool),
        "latent": np.array([step.latent for _, step in steps], dtype=bool),
        "ids": ids,
        "weights": weights,
        "scores": scores,
        "log_probability": np.array(
            [step.log_probability if step.latent else 0.0 for _, step in steps], dtype=np.float32
        ),
        "prompt": np.array([i for prompt in prompts for i in prompt], dtype=np.int64),
        "prompt_request": np.array(
            [row for row, prompt in enumerate(prompts) for _ in prompt], dtype=np.int64
        ),
    }
    specs = json.dumps([trace.spec.model_dump(mode="json") for trace in traces])
    samples = json.dumps([trace.sample for trace in traces])
    metadata = {"format": FORMAT, "version": VERSION, "specs": specs, "samples": samples}
    with replacing(path) as file:
        file.write(save(arrays, metadata=metadata))


def load_rollouts(path: str | Path) -> Rollouts:
    """Read a file back.

    Raises
    ------
    ValueError
        Not such a file, or of another version. SpecError where a spec in it is wrong.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = (metadata.get("format"), metadata.get("version"))
            if found != (FORMAT, VERSION) or set(file.keys()) != set(TENSORS):
                raise ValueError(f"file: got {found}; allowed: {(FORMAT, VERSION)}")
            arrays = {name: file.get_tensor(name) for name in TENSORS}
    except SafetensorError as error:
        raise ValueError(f"file: got {error}; allowed: a safetensors file") from None
    try:
        specs = tuple(parse_spec(spec) for spec in json.loads(metadata["specs"]))
        # Files of earlier versions do not say.
        indices = json.loads(metadata.get("samples", "null")) or [0] * len(specs)
        samples = tuple(int(index) for index in indices)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"specs: got {error}; allowed: specs as JSON") from None
    return Rollouts(arrays, specs, samples)
