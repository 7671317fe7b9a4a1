"""SofT-GRPO (arXiv 2511.06411) on tensors: rollouts, their log-probabilities, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from tokenlens.methods.rollout_scores import soft_grpo_log_probability
from tokenlens.trace import Trace

MOST_RATIO = 3.0
"""Of a bad rollout: beyond it a step no longer pulls (the authors' dual clip)."""


@dataclass(frozen=True)
class Decoding:
    """How rollouts are decoded: part of the policy, so the loss needs the same. The paper's."""

    soft: bool = True
    temperature: float = 1.0
    top_k: int = 5
    top_p: float = 0.95
    entries: int = 5
    tau: float = 0.1
    clamp_low: float = -1.5
    clamp_high: float = 3.0

    def spec(self, seed: int) -> dict:
        """The spec of one rollout; rollouts of a prompt with equal seeds would be one sample."""
        mixes = {
            "method": "soft_thinking",
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "max_entries": self.entries,
        }
        noise = {
            "method": "soft_grpo_noise",
            "temperature": self.tau,
            "clamp_low": self.clamp_low,
            "clamp_high": self.clamp_high,
        }
        # Every entry that was fed, and every step.
        trace = {"level": "full", "max_entries": self.entries, "max_steps": 1_000_000}
        return {"methods": [mixes, noise] if self.soft else [], "seed": seed, "trace": trace}


@dataclass(frozen=True)
class Rows:
    """Rollouts as tensors, prompts included, padded on the right: ``[rows, length]``."""

    tokens: Tensor
    latent: Tensor
    """Fed as a mixture."""
    scored: Tensor
    """Generated, not the prompt or padding."""
    recorded: Tensor
    """The log-probability that the engine gave the step's noise; 0 where there was none."""
    ids: Tensor
    """``[rows, length, entries]``; -1 where there is none. With ``weights`` and ``scores``."""
    weights: Tensor
    scores: Tensor

    @classmethod
    def of(cls, traces: Sequence[Trace], prompts: Sequence[Sequence[int]], entries: int) -> Rows:
        """From complete traces, of any engine, and the prompts' tokens."""
        length = max(len(p) + len(t.steps) for p, t in zip(prompts, traces, strict=True))
        flat, wide = (len(traces), length), (len(traces), length, entries)
        rows = cls(
            torch.zeros(flat, dtype=torch.long),
            torch.zeros(flat, dtype=torch.bool),
            torch.zeros(flat, dtype=torch.bool),
            torch.zeros(flat),
            torch.full(wide, -1),
            torch.zeros(wide),
            torch.zeros(wide),
        )
        for row, (trace, prompt) in enumerate(zip(traces, prompts)):
            steps, start = trace.steps, len(prompt)
            if len(steps) != trace.counts.tokens:
                raise ValueError(f"trace {row}: got {len(steps)} of {trace.counts.tokens} steps")
            end = start + len(steps)
            rows.tokens[row, :end] = torch.tensor([*prompt, *(step.token for step in steps)])
            rows.scored[row, start:end] = True
            rows.latent[row, start:end] = torch.tensor([step.latent for step in steps])
            for place, step in enumerate(steps, start):
                if step.latent:
                    chosen, weights = zip(*step.entries, strict=True)
                    rows.ids[row, place, : len(chosen)] = torch.tensor(chosen)
                    rows.weights[row, place, : len(chosen)] = torch.tensor(weights)
                    rows.scores[row, place, : len(chosen)] = torch.tensor(step.scores)
                    rows.recorded[row, place] = step.log_probability
        return rows

    def pick(self, rows: Tensor) -> Rows:
        """Some of the rows, cut to the longest of them."""
        longest = int(self.lengths[rows].max())
        return Rows(*(getattr(self, field.name)[rows, :longest] for field in fields(self)))

    def behind(self, start: int) -> Rows:
        """Without the first places."""
        return Rows(*(getattr(self, field.name)[:, start:] for field in fields(self)))

    @property
    def lengths(self) -> Tensor:
        """``[rows]``: of prompt and reply."""
        places = torch.arange(1, self.tokens.shape[1] + 1)
        return (self.scored * places).amax(1)


def log_probabilities(model: nn.Module, rows: Rows, how: Decoding) -> Tensor:
    """``[rows, length]``: of each generated step under the model, 0 elsewhere; differentiable."""
    logits = model(inputs_embeds=fed(model, rows)).logits
    # Causal attention and padding on the right: no mask. The logits of t - 1 score t.
    found = torch.zeros_like(rows.recorded)
    found[:, 1:] = score(logits[:, :-1], rows.behind(1), how)
    return found


def fed(model: nn.Module, rows: Rows) -> Tensor:
    """``[rows, length, hidden]``: what the rollouts fed, mixtures as mixtures; without gradient."""
    embed = model.get_input_embeddings()
    with torch.no_grad():
        # [rows, length, entries, hidden]; absent entries weigh 0.
        entries = embed(rows.ids.clamp(min=0))
        mixtures = (rows.weights.unsqueeze(-1) * entries).sum(2)
        return torch.where(rows.latent.unsqueeze(-1), mixtures, embed(rows.tokens))


def score(logits: Tensor, rows: Rows, how: Decoding) -> Tensor:
    """``[rows, length]``: log-probabilities of steps under the logits that decided them.

    Parameters
    ----------
    logits
        ``[rows, length, vocab]``: at each place those that led to its token.
    """
    found = torch.zeros_like(rows.recorded)
    soft, hard = rows.scored & rows.latent, rows.scored & ~rows.latent
    found[soft] = soft_grpo_log_probability(
        logits[soft],
        rows.ids[soft],
        rows.scores[soft],
        temperature=how.temperature,
        clamp_low=how.clamp_low,
        clamp_high=how.clamp_high,
    )
    of_tokens = torch.log_softmax(logits[hard].float() / how.temperature, dim=1)
    found[hard] = of_tokens.gather(1, rows.tokens[hard].unsqueeze(1)).squeeze(1)
    return found


def ratio_error(found: Tensor, rows: Rows) -> float:
    """Largest ``|ratio - 1|`` of latent steps against what the engine recorded."""
    gap = (found.detach() - rows.recorded)[rows.latent]
    return float((gap.exp() - 1).abs().max()) if len(gap) else 0.0


def advantages(rewards: Tensor) -> Tensor:
    """``[problems, group]``: rewards against their group; all 0 where a group agrees."""
    spread = rewards.std(1, keepdim=True, unbiased=False)
    return (rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)


def loss(new: Tensor, old: Tensor, advantage: Tensor, scored: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped objective, summed over generated steps.

    Parameters
    ----------
    new, old, scored
        ``[rows, length]``; ``old`` without gradient.
    advantage
        ``[rows]``.
    """
    ratio, gain = torch.exp(new - old), advantage.unsqueeze(1)
    kept = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    kept = torch.where(gain < 0, torch.maximum(kept, MOST_RATIO * gain), kept)
    return -(kept * scored).sum()
