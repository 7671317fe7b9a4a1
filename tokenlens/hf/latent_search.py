"""Search for rows of a prompt before decoding: DMLR (arXiv 2512.12623), of texts alone.

The embeddings of some placeholders are moved by an evolution strategy towards what makes the model
sure of what stands there; each candidate is one forward pass over the prompt. What is found is
written to a file and fed by ``softcotpp`` (``docs/hidden_states.md``). Knows no ``generate()``.

======================  =============================  ====================================
what                    default                        ``published`` (authors' code)
======================  =============================  ====================================
deviation of a draw     ``sigma`` times the root       ``sigma`` itself (25, where embeddings
                        mean square of the table       deviate by some 0.02)
candidates of a step    two, opposite; their           one; its score, without a baseline
                        difference moves the mean
what is kept            the candidate that scored      the mean that the best candidate has
                        best, or the placeholders      moved, which was not scored
======================  =============================  ====================================

Not reproduced: the choice of image patches between the rows, and that candidates of several rows
are written over such patches.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tokenlens.errors import UnsupportedError

TINY = 1e-10


class Searched(NamedTuple):
    """What a search has found.

    Attributes
    ----------
    rows
        ``[placeholders, hidden]``.
    scores
        Of every candidate, in order, behind that of the placeholders themselves.
    """

    rows: Tensor
    scores: list[float]


def confidence(logits: Tensor, top: int) -> Tensor:
    """How sure a model is: the mean negative logarithm of the top probabilities, a scalar.

    Parameters
    ----------
    logits
        ``[positions, vocab]``: from the first row to the position behind the last one.
    top
        How many probabilities of each position.
    """
    return -(logits.softmax(dim=-1).topk(top, dim=-1).values + TINY).log().mean()


def moved(rows: Tensor, epsilon: Tensor, score: Tensor | float, lr: float, sigma: float) -> Tensor:
    """The mean of the draws after a candidate's score; shapes as ``rows``."""
    return rows + lr * score * epsilon / sigma**2


@torch.no_grad()
def latent_search(
    model: Any,
    prompt_ids: Tensor,
    placeholder: int,
    *,
    steps: int = 15,
    sigma: float | None = None,
    decay: float = 0.95,
    lr: float | None = None,
    top: int = 10,
    seed: int = 0,
    profile: Literal["default", "published"] = "default",
    control: bool = False,
) -> Searched:
    """Rows for the placeholders of one prompt.

    Parameters
    ----------
    prompt_ids
        ``[tokens]`` int64; the placeholders stand together, and a token follows them.
    steps
        Of the strategy: one candidate each as published, else two.
    sigma, lr
        Of the draws at first, and how far a score moves them; ``None``: 25 and 0.01 as published,
        else 0.5 and 1.
    decay
        Of the deviation, a step.
    control
        Scores are drawn at random: as many steps, and nothing is learned.

    Raises
    ------
    UnsupportedError
        No placeholders, or some that do not stand together, or at the end.
    """
    places = (prompt_ids == placeholder).nonzero()[:, 0]
    number = len(places)
    first = int(places[0]) if number else 0
    together = bool((places == torch.arange(first, first + number, device=places.device)).all())
    if not number or not together or first + number >= len(prompt_ids):
        raise UnsupportedError(
            f"placeholder: got {number} of {placeholder} at {places.tolist()[:8]}; allowed: some"
            " that stand together, with a token behind them"
        )
    as_published = profile == "published"
    sigma = (25.0 if as_published else 0.5) if sigma is None else sigma
    lr = (0.01 if as_published else 1.0) if lr is None else lr
    embed = model.get_input_embeddings()
    inputs = embed(prompt_ids[None]).clone()
    rows = inputs[0, first : first + number].float()
    if not as_published:
        sigma *= float(
            embed(torch.arange(embed.num_embeddings)[:4096]).float().square().mean().sqrt()
        )
    generator = torch.Generator().manual_seed(seed)

    def score(candidate: Tensor) -> float:
        if control:
            return float(torch.rand((), generator=generator))
        inputs[0, first : first + number] = candidate.to(inputs.dtype)
        logits = model(inputs_embeds=inputs, use_cache=False).logits[0].float()
        return float(confidence(logits[first : first + number + 1], top))

    scores = [score(rows)]
    best, kept = (0.0 if as_published else scores[0]), rows
    for _ in range(steps):
        epsilon = torch.randn(rows.shape, generator=generator).to(rows.device) * sigma
        if as_published:
            scores.append(score(rows + epsilon))
            rows = moved(rows, epsilon, scores[-1], lr, sigma)
            if scores[-1] > best:
                best, kept = scores[-1], rows
        else:
            for candidate in (rows + epsilon, rows - epsilon):
                scores.append(score(candidate))
                if scores[-1] > best:
                    best, kept = scores[-1], candidate
            # In units of the deviation: a score that differs by 1 moves by a whole draw.
            rows = moved(rows, epsilon, (scores[-2] - scores[-1]) / 2, lr * sigma**2, sigma)
        sigma *= decay
    return Searched(kept, scores)
