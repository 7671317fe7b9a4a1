"""DiffAdapt (arXiv 2510.19669): a probe behind the prompt chooses temperature and length.

The last hidden state of the prompt's last position goes through two layers into easy, normal or
hard; a strategy for each has a temperature, and a share of a budget after which thinking ends. The
paper also sends the strategy's own prompt, which is not done here: a request's prompt is its
client's. Its labels come from the entropy and the correctness of samples of the model's own; the
thresholds, and the probe's width, are not known.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core import phases
from tokenlens.core.columns import END_IDS, END_LENGTH, GENERATED, Field, Value
from tokenlens.core.forcing import start_forcing
from tokenlens.core.marker_columns import written_end
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods import files
from tokenlens.methods._shared.temperature import TemperatureMethod
from tokenlens.methods.diffadapt.config import DiffAdapt
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

CLASSES = ("easy", "normal", "hard")
NORMAL = CLASSES.index("normal")
NO_BUDGET = 1 << 40

FILE = Field("diffadapt.file", "int", -1, fixed=True)
CLASS = Field("diffadapt.class", "int", NORMAL)
CONFIDENCE = Field("diffadapt.confidence", "float", fixed=True)
TEMPERATURES = Field("diffadapt.temperatures", "float", 1.0, size=len(CLASSES), fixed=True)
BUDGETS = Field("diffadapt.budgets", "int", NO_BUDGET, size=len(CLASSES), fixed=True)


def probe(hidden: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Probabilities of easy, normal and hard, ``[num_rows, 3]``.

    Parameters
    ----------
    hidden
        ``[num_rows, hidden]``: behind the last token of the prompt, after the final norm.
    w1, b1, w2, b2
        ``[width, hidden]``, ``[width]``, ``[3, width]``, ``[3]``.
    """
    return (torch.relu(hidden @ w1.T + b1) @ w2.T + b2).softmax(dim=-1)


class DiffAdaptMethod(TemperatureMethod):
    """Looks at a prompt once, and follows its strategy."""

    def __init__(self) -> None:
        super().__init__("diffadapt", FILE, CLASS, CONFIDENCE, TEMPERATURES, BUDGETS)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, DiffAdapt)
        file = files.find("diffadapt.file", config.file)
        hidden = None if admission.shape is None else admission.shape.hidden_size
        w1 = files.tensor_of(file, "diffadapt.file", "w1", (None, hidden))
        for key, shape in (("b1", (len(w1),)), ("w2", (3, len(w1))), ("b2", (3,))):
            files.tensor_of(file, "diffadapt.file", key, shape)
        strategies = [getattr(config, name) for name in CLASSES]
        budget = config.budget
        return {
            **super().admit(config, admission),
            FILE: file.number,
            CONFIDENCE: config.confidence,
            TEMPERATURES: [one.temperature for one in strategies],
            BUDGETS: [
                NO_BUDGET if budget is None else int(one.share * budget) for one in strategies
            ],
        }

    def needs(self, config: AnyMethod) -> Need:
        assert isinstance(config, DiffAdapt)
        return Need.PROMPT_STATE | (Need.NOTHING if config.budget is None else Need.FORCING)

    def control(self, rows: Rows) -> None:
        assert rows.layers is not None
        hidden = rows.layers.prompt_state()
        if hidden is not None:
            self._look(hidden, rows)
        if rows.uses(BUDGETS):
            budget = rows[BUDGETS].gather(1, rows[CLASS][:, None])[:, 0]
            due = rows[self.on] & rows.thinking & (phases.in_block(rows) >= budget)
            start_forcing(rows, due, rows[END_IDS], rows[END_LENGTH], written_end(rows))

    def _look(self, hidden: Tensor, rows: Rows) -> None:
        first = rows[self.on] & (rows[GENERATED] == 0)
        for number in rows.files(FILE):
            w = files.on_device(number, hidden.device)
            likely, found = probe(hidden, w["w1"], w["b1"], w["w2"], w["b2"]).max(dim=1)
            sure = (likely >= rows[CONFIDENCE]) & likely.isfinite()
            rows.choose(CLASS, first & (rows[FILE] == number), torch.where(sure, found, NORMAL))

    def wanted(self, entropy: Tensor, due: Tensor, rows: Rows) -> Tensor:
        return rows[TEMPERATURES].gather(1, rows[CLASS][:, None])[:, 0]


STEPS = (DiffAdaptMethod(),)
