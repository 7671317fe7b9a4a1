"""An independent batch-1 loop of Soft Thinking: plain forwards, own embeddings, no tokenlens.

It recomputes the whole sequence at every step from the embeddings fed so far, without a cache.
"""

from dataclasses import dataclass, field

import torch


@dataclass
class Run:
    """What the loop did."""

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    latent: list[bool] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


def concept(logits, *, temperature, top_k, top_p, min_p, max_entries):
    """Ids, weights and the full-vocabulary entropy of one row, as the paper writes it."""
    p = torch.softmax(logits.double() / temperature, dim=-1)
    entropy = -(p * p.clamp_min(1e-300).log()).sum().item()
    order = torch.sort(p, descending=True, stable=True).indices
    p, ids = p[order], order
    if top_k:
        p, ids = p[:top_k] / p[:top_k].sum(), ids[:top_k]
    keep = (p.cumsum(0) - p) <= top_p
    p, ids = p[keep] / p[keep].sum(), ids[keep]
    keep = p >= min_p * p[0]
    p, ids = p[keep], ids[keep]
    p, ids = p[:max_entries], ids[:max_entries]
    return ids, (p / p.sum()).float(), entropy


@torch.no_grad()
def soft_thinking(
    model,
    prompt,
    *,
    steps,
    end,
    eos=None,
    temperature=0.6,
    top_k=30,
    top_p=0.95,
    min_p=0.0,
    max_entries=15,
    cold_stop=None,
):
    """Greedy answers, latent thinking from the first token until ``end``."""
    embed = model.get_input_embeddings()
    fed = embed(torch.tensor([prompt]))
    run, thinking, counter = Run(), True, 0
    for _ in range(steps):
        logits = model(inputs_embeds=fed, use_cache=False).logits[0, -1].float()
        run.logits.append(logits)
        if thinking:
            ids, weights, entropy = concept(
                logits,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                max_entries=max_entries,
            )
            run.entropies.append(entropy)
            token = int(ids[0])
            if cold_stop is not None:
                threshold, patience = cold_stop
                counter = counter + 1 if entropy < threshold else 0
                if counter >= patience:
                    token = end
            thinking = token != end
        else:
            token = int(logits.argmax())
        latent = thinking and token != eos
        run.tokens.append(token)
        run.latent.append(latent)
        if token == eos:
            break
        if latent:
            x = (embed(ids[None]).float() * weights[None, :, None]).sum(1, keepdim=True)
        else:
            x = embed(torch.tensor([[token]]))
        fed = torch.cat([fed, x.to(fed.dtype)], dim=1)
    return run
