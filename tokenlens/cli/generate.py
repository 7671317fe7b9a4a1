"""``tokenlens generate``: prompts through a model with a spec, and what happened."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from tokenlens.cli import models, show
from tokenlens.cli.stream import TraceStream
from tokenlens.spec import DecodingSpec


def run(
    console: Console,
    *,
    model: str,
    spec: DecodingSpec,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float,
    raw: bool,
    trace: Path | None,
    seed: int,
) -> None:
    """Print each answer shaded by entropy, its concept tokens, and optionally write the traces."""
    with console.status("loading the model"):
        network, tokenizer = models.load(model)
    torch.manual_seed(seed)
    stream = None
    if trace is not None:
        # Opened first: a path that cannot be written is an error before the work, not after it.
        stream = TraceStream(trace, tokenizer, model, prompts)
    found = models.run(
        console,
        network,
        tokenizer,
        prompts,
        spec,
        label="generating",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        raw=raw,
        stream=stream,
    )
    console.print(show.legend())
    for prompt, one in zip(prompts, found):
        console.print(Panel(show.tokens(one, tokenizer), title=Text(prompt), title_align="left"))
        if one.counts.latent_steps:
            console.print(show.concept_tokens(one, tokenizer, details=False))
        console.print(show.summary(one))
    if trace is not None:
        console.print(Text(f"{len(found)} traces written to {trace}", style="dim"))
