"""Loading a model for the command line, and running it with a progress bar."""

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    StoppingCriteria,
)
from transformers.utils import logging

from tokenlens import assets
from tokenlens.cli.stream import TraceStream
from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import DecodingSpec
from tokenlens.trace import Trace


def load(name: str, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A model on the device there is, and its tokenizer.

    Parameters
    ----------
    dtype
        ``None``: bfloat16 on an accelerator, float32 on a CPU.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = assets.path_of(name)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    # Classes of models that see images are no plain language models to transformers.
    config = AutoConfig.from_pretrained(path)
    plain = type(config) in AutoModelForCausalLM._model_mapping
    loader = AutoModelForCausalLM if plain else AutoModelForImageTextToText
    model: Any = loader.from_pretrained(path, dtype=dtype)
    return model.eval().to(device), tokenizer


class Advance(StoppingCriteria):
    """Stops nothing: moves a progress bar on by a step."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._progress.advance(self._task)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def run(
    console: Console,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    spec: DecodingSpec,
    *,
    label: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    raw: bool = False,
    stream: TraceStream | None = None,
) -> list[Trace]:
    """Generate for every prompt, and return a full trace of each; ``stream`` writes them down."""
    texts = list(prompts)
    if not raw and tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    inputs = tokenizer(
        texts,
        return_tensors="pt",
        padding=True,
        add_special_tokens=raw or not tokenizer.chat_template,
    )
    inputs.pop("token_type_ids", None)
    full = spec.trace.model_copy(update={"level": "full", "max_steps": max_new_tokens})
    spec = spec.model_copy(update={"trace": full})
    # A model's generation config may bring sampling settings of its own.
    settings: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    if temperature > 0:
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(label, total=max_new_tokens)
        criteria: list[StoppingCriteria] = [Advance(progress, task)]
        if stream is not None:
            criteria.append(stream)
        kwargs = generate_kwargs(model, tokenizer, spec, stopping_criteria=criteria)
        try:
            model.generate(
                **inputs.to(model.device), **kwargs, **settings, max_new_tokens=max_new_tokens
            )
        except BaseException:
            if stream is not None:
                stream.close()
            raise
    if stream is not None:
        stream.finish()
    return [trace for trace in traces(kwargs) if trace is not None]
