"""The temperature of forking tokens ("Beyond the 80/20 rule", arXiv 2506.01939, section 3).

A token whose distribution has a high entropy opens the way for what follows. Above ``threshold``
the logits are divided by ``high``, else by ``low``; the entropy is the full vocabulary's in nats,
at temperature 1, after the other logit edits. At the threshold itself the rule jumps: two engines
whose entropies differ in the last bit there sample at different temperatures.

With ``quantile`` a forking token is one whose entropy has a rank above that share of the request's
own last ``window`` entropies, itself among them; equal ones share their middle rank. It is the
router's running quantile, but of one request: of all requests together it would make an answer
depend on what else is running. The first token is never a forking one (at 0.5 and above).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.temperature import TemperatureMethod
from tokenlens.methods.forking_temperature.config import MAX_WINDOW, ForkingTemperature
from tokenlens.spec.registry import AnyMethod

THRESHOLD = Field("forking_temperature.threshold", "float")
HIGH = Field("forking_temperature.high", "float", 1.0)
LOW = Field("forking_temperature.low", "float", 1.0)
QUANTILE = Field("forking_temperature.quantile", "float", fixed=True)
WINDOW = Field("forking_temperature.window", "int", MAX_WINDOW, fixed=True)
SEEN = Field("forking_temperature.seen", "int")
RECENT = Field("forking_temperature.recent", "float", size=MAX_WINDOW)


def forking_temperature(entropy: Tensor, threshold: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """The temperature of each row, ``[num_rows]``.

    Parameters
    ----------
    entropy, threshold, high, low
        ``[num_rows]`` float; the first two in nats.
    """
    return torch.where(entropy > threshold, high, low)


def take_in(recent: Tensor, seen: Tensor, window: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """The last entropies with one more, and its rank among them from 0 to 1.

    Parameters
    ----------
    recent
        ``[num_rows, MAX_WINDOW]`` float: a ring, of which the first ``window`` places are used.
    seen, window
        ``[num_rows]`` int64: how many were taken in before, and how many are kept.
    entropy
        ``[num_rows]`` float, nats.

    Returns
    -------
    recent, rank
        ``[num_rows, MAX_WINDOW]`` and ``[num_rows]`` float.
    """
    place = torch.arange(recent.shape[1], device=recent.device)
    at = torch.remainder(seen, window)[:, None]
    recent = torch.where(place == at, entropy[:, None], recent)
    count = (seen + 1).minimum(window)
    # One below is a whole rank, one that is equal (as it is itself) half of one.
    above = (recent < entropy[:, None]).double() + 0.5 * (recent == entropy[:, None])
    rank = torch.where(place < count[:, None], above, 0.0).sum(dim=1)
    return recent, rank / count


class ForkingTemperatureMethod(TemperatureMethod):
    """Divides the logits by one of two temperatures."""

    def __init__(self) -> None:
        fields = (THRESHOLD, HIGH, LOW, QUANTILE, WINDOW, SEEN, RECENT)
        super().__init__("forking_temperature", *fields)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, ForkingTemperature)
        return {
            **super().admit(config, admission),
            THRESHOLD: config.threshold,
            HIGH: config.high,
            LOW: config.low,
            QUANTILE: config.quantile or 0.0,
            WINDOW: config.window,
        }

    def wanted(self, entropy: Tensor, due: Tensor, rows: Rows) -> Tensor:
        wanted = forking_temperature(entropy, rows[THRESHOLD], rows[HIGH], rows[LOW])
        # Who has a threshold alone pays for no entropies that are kept.
        if rows.uses(QUANTILE):
            due = due & (rows[QUANTILE] > 0)
            recent, rank = take_in(rows[RECENT], rows[SEEN], rows[WINDOW], entropy)
            rows.choose(RECENT, due, recent)
            rows.add(SEEN, due)
            by_rank = torch.where(rank > rows[QUANTILE], rows[HIGH], rows[LOW])
            wanted = torch.where(due, by_rank, wanted)
        return wanted


STEPS = (ForkingTemperatureMethod(),)
