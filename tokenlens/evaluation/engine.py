"""What an evaluation needs of an engine: answers to prompts, each with a spec of its own."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from tokenlens.errors import SpecError
from tokenlens.evaluation.answers import is_open, markers_of
from tokenlens.evaluation.arms import ArmSampling
from tokenlens.evaluation.records import Generated
from tokenlens.spec import DecodingSpec, PhaseConfig
from tokenlens.spec.finding import EngineMarkers
from tokenlens.spec.resolution import resolve_phase
from tokenlens.trace import Trace
from tokenlens.trace.finish import finish

EngineName = Literal["hf", "vllm", "sglang", "server"]


class Engine(Protocol):
    """An engine with a model.

    ``generate`` must give the same answers to the same arguments: an evaluation that was killed
    goes on with the next batch, and its numbers must be those of one that was not.

    An engine whose answers come one by one may also have ``answer_each`` (see
    :class:`tokenlens.evaluation.engine_server.ServedModel`): each answer is then on disk when it
    is there, and of a batch that was interrupted only the rest is asked for. One with ``check`` is
    shown every arm's spec before the first question; one with ``versions`` has its own beside
    those of this process. ``phase`` says a spec's phase with the markers that were found for it;
    without it, answers are looked for behind those that the spec names. One with ``steered``
    answers with a controller (:mod:`tokenlens.evaluation.steering`).
    """

    name: EngineName

    def generate(
        self,
        prompts: Sequence[str],
        specs: Sequence[DecodingSpec],
        sampling: ArmSampling,
        *,
        max_new_tokens: int,
        seed: int,
    ) -> list[Generated]:
        """Answers to user messages.

        Parameters
        ----------
        seed
            Of the engine's sampler, for the whole batch; a spec's seed is of its own noise.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included: what a spec's markers write."""

    def close(self) -> None:
        """Let the model go."""


def phase_of(
    tokenizer: Any, spec: DecodingSpec, engine: EngineMarkers | None = None
) -> PhaseConfig:
    """A spec's phase with the markers that its engine finds for it; see ``resolve_phase``."""
    try:
        return resolve_phase(spec.phase, tokenizer, engine)
    except SpecError:
        # Where it matters, the engine refuses the spec and says why.
        return spec.phase


def opened(tokenizer: Any, prompt: str, rendered: str, phase: PhaseConfig) -> bool:
    """Whether a text begins in an open thought of its phase, which has the markers found."""
    markers = markers_of(phase, tokenizer.decode)
    if phase.opens == "first_token":
        return bool(markers.end)
    return is_open(rendered, prompt, markers)


def counted(spec: DecodingSpec) -> DecodingSpec:
    """The spec with a trace of its totals, and as little else as can be."""
    # A row without methods is counted only if its steps are asked for: one of them will do.
    update = {"level": "summary" if spec.methods else "full", "max_steps": 1, "max_entries": 1}
    return spec.model_copy(update={"trace": spec.trace.model_copy(update=update)})


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """A user message as the model's chat has it; as it stands where the model has no chat."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    found = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
    )
    return list(found["input_ids"])


def answer(
    tokenizer: Any, ids: Sequence[int], finished: bool, trace: Trace, is_opened: bool
) -> Generated:
    """What a served engine generated, as a record; special tokens are part of the text."""
    values = trace.counts.model_dump(include=set(Generated.model_fields))
    values |= {"tokens": len(ids), "text": tokenizer.decode(ids)}
    return Generated(**values, finished=finished, opened=is_opened, finish=finish(trace))
