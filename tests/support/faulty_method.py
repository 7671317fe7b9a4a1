"""A method that goes wrong in one of its hooks, in the way that its config says.

Hooks look at the device to see whose turn it is, as only a test may.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tokenlens.core.forcing import start_forcing
from tokenlens.methods import Column, Method, Need, Phase, columns, method
from tokenlens.spec import MethodBase

NOWHERE = 10**7
"""No vocabulary is as large."""

RAISES = {
    "admit": "admit",
    **{
        f"{hook} raises": hook
        for hook in (
            "needs", "edits", "control", "edit", "request_signals", "reweigh", "propose", "gate",
            "commit",
        )
    },
}  # fmt: skip
"""Faults that raise, and in which hook."""

WRONG = {
    "admit none": "admit",
    "admit a text": "admit",
    "admit a NaN": "admit",
    "admit another's column": "admit",
    "admit two numbers": "admit",
    "needs none": "needs",
    "needs a vector": "needs",
    "edits none": "edits",
    "edit none": "edit",
    "edit one row": "edit",
    "edit in half": "edit",
    "signals of one row": "request_signals",
    "weights of one row": "reweigh",
    "weights in double": "propose",
    "ids as floats": "propose",
    "latent as numbers": "gate",
    "a float in an int column": "commit",
    "a column of one row": "commit",
    "another's record": "edit",
    "an end of its own": "control",
    "a position of its own": "commit",
}
"""Faults that give something of the wrong form, and in which hook."""

REFUSED = tuple(
    fault for fault, hook in (RAISES | WRONG).items() if hook in ("admit", "needs", "edits")
)
"""Those of which whoever admits a request hears."""

ENDED = tuple(fault for fault in RAISES | WRONG if fault not in REFUSED)
"""Those that end their request in a step."""

INVALID = (
    "edit a NaN", "edit to nothing", "weights of NaN", "huge weights", "an entry nowhere",
    "an entry below", "a token nowhere", "a token below", "a text nowhere", "a place below",
)  # fmt: skip
"""Values that cannot be used: the row's steps are invalid."""

GREEDY = (
    "edit all", "edit all in place", "signals of all", "weights of all", "force all",
    "latent for all", "answer for all", "forced text for all", "discrete for all",
)  # fmt: skip
"""What is done to every row, whoever asked."""

FAULTS = (*RAISES, *WRONG, *INVALID, *GREEDY)


class Faulty(MethodBase):
    """Goes wrong in one way."""

    family: ClassVar[tuple[str, ...]] = ("latent",)

    method: Literal["faulty"] = "faulty"
    fault: Literal[("", *FAULTS)] = Field("", description="which one")


FAULT = Column("faulty.fault", "int", -1, fixed=True)
COUNT = Column("faulty.count", "int")


@method(Faulty, after="soft_thinking")
class FaultyMethod(Method):
    """Every hook is there. Without a fault it feeds the mixtures of the one pass."""

    counters: ClassVar = {"faulty_steps": COUNT}

    def __init__(self):
        super().__init__("faulty", FAULT, COUNT)

    def due(self, rows, *faults):
        """Whether one of these faults is a row's of this step."""
        numbers = torch.tensor([FAULTS.index(fault) for fault in faults])
        return bool((rows[self.on] & torch.isin(rows[FAULT], numbers)).any())

    def whose(self, rows, fault):
        """``[num_rows, 1]``: the rows with this fault."""
        return (rows[self.on] & (rows[FAULT] == FAULTS.index(fault)))[:, None]

    def trip(self, rows, hook):
        """Raise where that is the fault."""
        for fault, where in RAISES.items():
            if where == hook and self.due(rows, fault):
                raise RuntimeError(f"the author's mistake in {hook}, with /a/path")

    def admit(self, config, admission):
        fault = config.fault
        if fault == "admit":
            raise RuntimeError("the author's mistake in admit, with /a/path")
        values = {
            FAULT: FAULTS.index(fault) if fault else -1,
            columns.MAX_ENTRIES: min(8, admission.vocab_size),
        }
        wrong = {
            "admit none": None,
            "admit a text": {FAULT: "1"},
            "admit a NaN": {columns.INVERSE_TEMPERATURE: float("nan")},
            "admit another's column": {Column("min_p.min_p", "float"): 1.0},
            "admit two numbers": {FAULT: [1, 2]},
        }
        return wrong.get(fault, values)

    def needs(self, config):
        if config.fault == "needs raises":
            raise RuntimeError("the author's mistake in needs")
        wrong = {"needs none": None, "needs a vector": Need.HIDDEN_STATE}
        forces = config.fault in ("a text nowhere", "a place below", "forced text for all")
        return wrong.get(config.fault, Need.LATENT | (Need.FORCING if forces else Need.NOTHING))

    def edits(self, config):
        if config.fault == "edits raises":
            raise RuntimeError("the author's mistake in edits")
        return None if config.fault == "edits none" else "edit" in config.fault or True

    def control(self, rows):
        self.trip(rows, "control")
        everywhere = rows.constant(True)
        text = torch.full((len(everywhere), columns.FORCE_IDS.size), NOWHERE)
        if self.due(rows, "a text nowhere"):
            mine = self.whose(rows, "a text nowhere")[:, 0]
            start_forcing(rows, mine, text, rows.constant(2))
        if self.due(rows, "a place below"):
            mine = self.whose(rows, "a place below")[:, 0]
            start_forcing(rows, mine, text * 0, rows.constant(2), at=-5)
        if self.due(rows, "forced text for all"):
            start_forcing(rows, everywhere, text * 0 + 9, rows.constant(2))
        if self.due(rows, "an end of its own"):
            rows[columns.ALIVE] = rows.constant(False)

    def edit(self, logits, rows):
        self.trip(rows, "edit")
        if self.due(rows, "another's record"):
            rows.needs |= Need.FULL_TRACE
            rows.record("min_p", rows.constant(1.0))
        if self.due(rows, "edit none"):
            return None
        if self.due(rows, "edit one row"):
            return logits[:1]
        if self.due(rows, "edit in half"):
            return logits.half()
        if self.due(rows, "edit a NaN"):
            logits = torch.where(self.whose(rows, "edit a NaN"), torch.nan, logits)
        if self.due(rows, "edit to nothing"):
            logits = torch.where(self.whose(rows, "edit to nothing"), -torch.inf, logits)
        if self.due(rows, "edit all"):
            return logits.flip(1)
        if self.due(rows, "edit all in place"):
            logits[:, 3:40] = 7.0
        return logits

    def request_signals(self, rows, request):
        self.trip(rows, "request_signals")
        request.active = request.active | (rows[self.on] & rows.thinking)
        if self.due(rows, "signals of one row"):
            request.active = request.active[:1]
        if self.due(rows, "signals of all"):
            request.active = rows.constant(True)
            request.inverse_temperature = torch.full_like(request.inverse_temperature, 9.0)

    def reweigh(self, rows, signals, proposal):
        self.trip(rows, "reweigh")
        if self.due(rows, "weights of one row"):
            proposal.weights = proposal.weights[:1]
        if self.due(rows, "weights of all"):
            proposal.weights = torch.full_like(proposal.weights, 1 / proposal.weights.shape[1])

    def propose(self, rows, signals, proposal):
        self.trip(rows, "propose")
        latent = rows[self.on] & rows.thinking & signals.valid
        proposal.latent = proposal.latent | latent
        proposal.force(latent, proposal.ids[:, 0])
        everywhere = rows.constant(True)
        if self.due(rows, "weights in double"):
            proposal.weights = proposal.weights.double()
        if self.due(rows, "ids as floats"):
            proposal.ids = proposal.ids.float()
        huge = torch.zeros_like(proposal.weights)
        huge[:, 0], huge[:, 1] = 1e30, -1e30
        for fault, weights in (("weights of NaN", torch.nan), ("huge weights", huge)):
            mine = self.whose(rows, fault)
            proposal.weights = torch.where(mine, weights, proposal.weights)
        for fault, token in (("an entry nowhere", NOWHERE), ("an entry below", -1)):
            proposal.ids = torch.where(self.whose(rows, fault), token, proposal.ids)
        for fault, token in (("a token nowhere", NOWHERE), ("a token below", -1)):
            proposal.force(self.whose(rows, fault)[:, 0], rows.constant(token))
        if self.due(rows, "force all"):
            proposal.force(everywhere, rows.constant(8))
        if self.due(rows, "latent for all"):
            proposal.latent = everywhere

    def gate(self, rows, signals, proposal):
        self.trip(rows, "gate")
        if self.due(rows, "latent as numbers"):
            proposal.latent = proposal.latent.long()
        if self.due(rows, "discrete for all"):
            proposal.latent = rows.constant(False)

    def commit(self, rows, before, sampled):
        self.trip(rows, "commit")
        rows.add(COUNT, rows[self.on])
        if self.due(rows, "a float in an int column"):
            rows[COUNT] = rows[COUNT] / 2
        if self.due(rows, "a column of one row"):
            rows[COUNT] = rows[COUNT][:1]
        if self.due(rows, "answer for all"):
            rows[columns.PHASE] = rows.constant(int(Phase.ANSWER))
            rows.latent = rows.constant(False)
        if self.due(rows, "a position of its own"):
            rows.add(columns.GENERATED, rows.constant(7))


class Unmade(MethodBase):
    """Of a class that cannot be made."""

    method: Literal["unmade"] = "unmade"


@method(Unmade, after="min_p")
class UnmadeMethod(Method):
    """Raises where it is made."""

    def __init__(self):
        raise OSError("no such file: /a/path")
