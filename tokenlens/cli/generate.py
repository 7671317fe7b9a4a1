"""``tokenlens generate``: prompts through a model with a spec, and what happened."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from tokenlens.cli import models, show
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
    )
    console.print(show.legend())
    for prompt, one in zip(prompts, found):
        console.print(Panel(show.tokens(one, tokenizer), title=Text(prompt), title_align="left"))
        if one.counts.latent_steps:
            console.print(show.concept_tokens(one, tokenizer, details=False))
        console.print(show.summary(one))
    if trace is not None:
        trace.write_text("".join(one.model_dump_json() + "\n" for one in found), encoding="utf-8")
        console.print(Text(f"{len(found)} traces written to {trace}", style="dim"))
