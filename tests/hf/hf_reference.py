"""An independent batch-1 loop: plain forwards, own embeddings, no core, no cache.

It recomputes the whole sequence at every step from the embeddings fed so far. Of tokenlens it uses
nothing but the table of random numbers, which has tests of its own.
"""

from dataclasses import dataclass, field

import torch
from tokenlens_kernels import philox

PROMPT, THINKING, ANSWER = "prompt", "thinking", "answer"


@dataclass(frozen=True)
class Recipe:
    """What one row does: the fields of a spec, as a loop understands them."""

    soft: bool = True
    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    min_p: float = 0.0
    max_entries: int = 15
    # entropy threshold in nats, patience in steps
    cold_stop: tuple[float, int] | None = None
    gumbel: float | None = None
    seed: int = 0
    top1: bool = False
    # thinking tokens after which thinking is ended
    end_after: int | None = None

    def spec(self, *, start, end):
        """The same as a spec, with a full trace."""
        methods = []
        if self.soft:
            keys = ("temperature", "top_k", "top_p", "min_p", "max_entries")
            soft = {"method": "soft_thinking", **{key: getattr(self, key) for key in keys}}
            if self.cold_stop is not None:
                threshold, patience = self.cold_stop
                soft["cold_stop"] = {"entropy_threshold": threshold, "patience": patience}
            methods.append(soft)
        if self.gumbel is not None:
            methods.append({"method": "gumbel_noise", "temperature": self.gumbel})
        if self.top1:
            methods.append({"method": "top1"})
        if self.end_after == 0:
            methods.append({"method": "no_thinking"})
        elif self.end_after is not None:
            methods.append({"method": "answer_now", "after": self.end_after})
        return {
            "methods": methods,
            "seed": self.seed,
            "phase": {"think_start": [start], "think_end": [end]},
            "trace": {"level": "full", "max_entries": 64},
        }


@dataclass
class Decoded:
    """What the loop did, one entry a step."""

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    latent: list[bool] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    # of the tempered distribution while thinking softly, of the model's own elsewhere
    entropies: list[float] = field(default_factory=list)
    cold_stops: int = 0
    # [1, tokens, hidden]: everything that was fed, the last token included
    fed: torch.Tensor | None = None


def entropy(logits, temperature):
    """Of the full vocabulary, in nats."""
    p = torch.softmax(logits.double() / temperature, dim=-1)
    return -(p * p.clamp_min(1e-300).log()).sum().item()


def concept(logits, recipe, position):
    """Ids and weights of one row, as the papers write it."""
    p = torch.softmax(logits.double() / recipe.temperature, dim=-1)
    ids = torch.sort(p, descending=True, stable=True).indices
    p = p[ids]
    if recipe.top_k:
        p, ids = p[: recipe.top_k] / p[: recipe.top_k].sum(), ids[: recipe.top_k]
    keep = (p.cumsum(0) - p) <= recipe.top_p
    p, ids = p[keep] / p[keep].sum(), ids[keep]
    keep = p >= recipe.min_p * p[0]
    p, ids = p[keep], ids[keep]
    p, ids = p[: recipe.max_entries], ids[: recipe.max_entries]
    if recipe.gumbel is not None:
        noise = philox.gumbel(recipe.seed, philox.offset(position, ids, philox.GUMBEL)).double()
        p = torch.softmax((p.log() + noise) / recipe.gumbel, dim=-1)
        order = torch.sort(p, descending=True, stable=True).indices
        p, ids = p[order], ids[order]
    return ids, (p / p.sum()).float()


@torch.no_grad()
def decode(model, prompt, recipe, *, steps, start, end, eos=None, fed=None):
    """Decode one prompt, greedily outside of thinking; ``fed`` replaces the prompt's embeddings."""
    embed = model.get_input_embeddings()
    fed = embed(torch.tensor([prompt])) if fed is None else fed
    out, counter, thought = Decoded(), 0, 0
    phase = THINKING if start in prompt else PROMPT
    for step in range(steps):
        logits = model(inputs_embeds=fed, use_cache=False).logits[0, -1].float()
        soft = recipe.soft and phase == THINKING
        out.logits.append(logits)
        out.phases.append(phase)
        out.entropies.append(entropy(logits, recipe.temperature if soft else 1.0))
        token, latent = int(logits.argmax()), False
        if soft:
            ids, weights = concept(logits, recipe, len(prompt) + step)
            token, latent = int(ids[0]), not recipe.top1
            if recipe.cold_stop is not None:
                threshold, patience = recipe.cold_stop
                counter = counter + 1 if out.entropies[-1] < threshold else 0
                if counter >= patience and token != eos:
                    token, out.cold_stops = end, out.cold_stops + 1
        if phase == THINKING and recipe.end_after is not None and thought >= recipe.end_after:
            token = end
        thought += phase == THINKING
        if token == start and phase == PROMPT:
            phase = THINKING
        elif token == end and phase != ANSWER:
            phase = ANSWER
        latent = latent and phase == THINKING and token != eos
        out.tokens.append(token)
        out.latent.append(latent)
        if latent:
            x = (embed(ids[None]).float() * weights[None, :, None]).sum(1, keepdim=True)
        else:
            x = embed(torch.tensor([[token]]))
        fed = torch.cat([fed, x.to(fed.dtype)], dim=1)
        if token == eos:
            break
    out.fed = fed
    return out
