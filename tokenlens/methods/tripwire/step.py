"""Ends a request before a step whose logits meet a condition, for controllers outside the engine.

Servers give at most twenty log-probabilities of a token; entropy, ranks and margins of the whole
distribution are known in the step alone. The distribution is that of the edited logits, at the
request's temperature and behind its filters: softmax, top-k, then the smallest set that holds
``top_p`` of what is left, the entry that crosses included.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import FORCE_LENGTH, GENERATED, POSITION, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.report import FRACTION
from tokenlens.core.rows import Rows
from tokenlens.errors import SpecError
from tokenlens.methods._shared.logits import facts
from tokenlens.methods.tripwire.config import Tripwire
from tokenlens.spec.registry import AnyMethod

ENTROPY = Field("tripwire.entropy", "float", torch.inf, fixed=True, infinite=True)
MAX_PROBABILITY = Field("tripwire.max_probability", "float", -1.0, fixed=True)
MARGIN = Field("tripwire.margin", "float", -1.0, fixed=True)
SECOND = Field("tripwire.second", "float", -1.0, fixed=True)
TOKEN = Field("tripwire.token", "int", -1, fixed=True)
RANK = Field("tripwire.rank", "int", fixed=True)
TEMPERATURE = Field("tripwire.temperature", "float", 1.0, fixed=True)
TOP_K = Field("tripwire.top_k", "int", fixed=True)
TOP_P = Field("tripwire.top_p", "float", 1.0, fixed=True)
SKIP = Field("tripwire.skip", "int", fixed=True)
ALWAYS = Field("tripwire.always", "bool", False, fixed=True)
EOS = Field("tripwire.eos", "int", fixed=True)
# Of the step that is decided: the number of the condition that is met, 0 for none; its value
MET = Field("tripwire.met", "int")
VALUE = Field("tripwire.value", "int")
# Once the end of the text is written: where it stands, and the same two
AT = Field("tripwire.at", "int")
BY = Field("tripwire.by", "int")
OF = Field("tripwire.of", "int")


class Distribution(NamedTuple):
    """What is known of each row's distribution, ``[num_rows]`` float64 each."""

    # nats
    entropy: Tensor
    first: Tensor
    second: Tensor


def filtered(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Distribution:
    """Of the distribution behind temperature, top-k and top-p, renormalised.

    Parameters
    ----------
    logits
        ``[num_rows, vocab]``.
    temperature, top_k, top_p
        ``[num_rows]``; a ``top_k`` of 0 keeps all tokens.
    """
    scaled = (logits.double() / temperature.double()[:, None]).sort(dim=1, descending=True).values
    place = torch.arange(scaled.shape[1], device=scaled.device)
    most = torch.where(top_k > 0, top_k, scaled.shape[1])
    p = scaled.masked_fill(place >= most[:, None], -torch.inf).softmax(dim=1)
    passed = (p.cumsum(dim=1) - p >= top_p.double()[:, None]) & (top_p < 1)[:, None]
    p = p.masked_fill(passed, 0.0)
    p = p / p.sum(dim=1, keepdim=True)
    return Distribution(torch.special.entr(p).sum(dim=1), p[:, 0], p[:, 1])


def rank_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """How many tokens are likelier, and one: ``[num_rows]`` int64; equal ones share their rank."""
    own = logits.gather(1, tokens.clamp(0, logits.shape[1] - 1)[:, None])
    return (logits > own).sum(dim=1) + 1


class TripwireMethod(Method):
    """Forces the end of the text where a condition is met."""

    counters: ClassVar[Mapping[str, Field]] = {
        "trip_position": AT, "trip_condition": BY, "trip_value": OF,
    }  # fmt: skip

    def __init__(self) -> None:
        asked = ENTROPY, MAX_PROBABILITY, MARGIN, SECOND, TOKEN, RANK
        how = TEMPERATURE, TOP_K, TOP_P, SKIP, ALWAYS, EOS
        super().__init__("tripwire", *asked, *how, MET, VALUE, AT, BY, OF)

    @property
    def records(self) -> tuple[str, ...]:
        # It looks at logits, and edits none.
        return ()

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Tripwire)
        if not admission.eos_ids:
            allowed = "a request that an end of the text ends: leave ignore_eos out"
            raise SpecError.of("tripwire", "a request without ends of the text", allowed)
        if config.token is not None and config.token >= admission.vocab_size:
            allowed = f"a token id below the vocabulary's {admission.vocab_size}"
            raise SpecError.of("tripwire.token", config.token, allowed)
        found: dict[Field, Value] = {
            TEMPERATURE: config.temperature,
            TOP_K: config.top_k,
            TOP_P: config.top_p,
            SKIP: config.skip,
            ALWAYS: config.active == "output",
            EOS: admission.eos_ids[0],
        }
        if config.entropy is not None:
            found[ENTROPY] = config.entropy
        if config.max_probability is not None:
            found[MAX_PROBABILITY] = config.max_probability
        if config.margin is not None or config.second is not None:
            # No two probabilities are 2 apart.
            found[MARGIN] = 2.0 if config.margin is None else config.margin
            found[SECOND] = -1.0 if config.second is None else config.second
        if config.token is not None:
            found[TOKEN], found[RANK] = config.token, config.rank
        return found

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        real = logits[:, : rows.vocab_size]
        due = rows[self.on] & (rows[ALWAYS] | rows.thinking) & (rows[GENERATED] >= rows[SKIP])
        found, due = self._distribution(logits, real, due, rows)
        apart = found.first - found.second
        rank = rank_of(real, rows[TOKEN]) if rows.uses(TOKEN) else rows.constant(0)
        # In the order of their names in a trace; comparisons in the columns' own format
        conditions = (
            (found.entropy.float() >= rows[ENTROPY], found.entropy),
            (found.first.float() <= rows[MAX_PROBABILITY], found.first),
            ((apart.float() < rows[MARGIN]) & (found.second.float() > rows[SECOND]), apart),
            ((rows[TOKEN] >= 0) & (rank <= rows[RANK]), rank.double()),
        )
        met, value = rows.constant(0), torch.zeros_like(found.entropy)
        for number, (holds, what) in reversed(list(enumerate(conditions, 1))):
            met = torch.where(due & holds, number, met)
            value = torch.where(due & holds, what, value)
        rows[MET] = met
        rows[VALUE] = (value * FRACTION).round().long()
        return logits

    def _distribution(
        self, logits: Tensor, real: Tensor, due: Tensor, rows: Rows
    ) -> tuple[Distribution, Tensor]:
        inverse = (1 / rows[TEMPERATURE].double()).float()
        logsumexp, entropy = facts(logits, due, inverse, rows)
        # A row that cannot be used has no log-sum-exp.
        due = due & (logsumexp == logsumexp)
        top = real.float().topk(2, dim=1).values * inverse[:, None]
        p = (top - logsumexp[:, None]).exp().double()
        found = Distribution(entropy.double(), p[:, 0], p[:, 1])
        if rows.uses(TOP_K) or rows.uses(TOP_P):
            # A row without filters is looked at in one way, whatever its neighbours ask.
            is_cut = (rows[TOP_K] > 0) | (rows[TOP_P] < 1)
            cut = filtered(real, rows[TEMPERATURE], rows[TOP_K], rows[TOP_P])
            found = Distribution(*(torch.where(is_cut, a, b) for a, b in zip(cut, found)))
        return found, due

    def gate(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        # A token of a forced sequence is not drawn from the logits.
        trips = rows[self.on] & (rows[MET] > 0) & (rows[FORCE_LENGTH] == 0)
        rows[MET] = torch.where(trips, rows[MET], 0)
        proposal.latent = proposal.latent & ~trips
        proposal.force(trips, rows[EOS])

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        tripped = rows[self.on] & rows.forced & (rows[MET] > 0) & (sampled == rows[EOS])
        # The position is already that of the token behind it.
        rows.choose(AT, tripped, rows[POSITION] - 1)
        rows.choose(BY, tripped, rows[MET])
        rows.choose(OF, tripped, rows[VALUE])


STEPS = (TripwireMethod(),)
