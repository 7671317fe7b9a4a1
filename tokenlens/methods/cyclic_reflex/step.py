"""CyclicReflex (arXiv 2506.11077): a waveform over the thinking, added to reflection words' logits.

``delta(t) = A * triangle((t + shift * C) mod C / C)`` with amplitude ``A``, period ``C`` and ``t``
tokens so far: nothing at t = 0, +A after a quarter of the period, -A after three quarters. Engines
divide by the temperature afterwards, so that the effect on probabilities is ``A / T``.

=====================  ===============================  ========================================
what                   default                          ``published`` (authors' code)
=====================  ===============================  ========================================
tokens of a word       every form: bare, after a        the five bare words as they stand
                       blank, capitalised and not
a word that is no      an error                         skipped (there, the whole row is shifted,
token                                                   which changes no probability)
t                      thinking tokens                  output tokens
acts                   while thinking                   from the first output token until the
                                                        output holds the end marker, also where
                                                        the prompt has ended thinking
=====================  ===============================  ========================================

``static_window`` is the same with a constant wave: CyclicReflex's repository calls it TIP, but the
thought switching penalty of that name is ``tip``. Not reproduced: there, beam search restarts the
position at every step of the text.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import END_IDS, END_LENGTH, PHASE, Field, Phase, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.logits import MAX_WORD_IDS, add, counted
from tokenlens.methods._shared.waves import WAVES, schedule
from tokenlens.methods.cyclic_reflex.config import MAX_WINDOWS, Schedule
from tokenlens.spec.registry import AnyMethod


class ScheduleMethod(Method):
    """Adds a waveform to the logits of a request's words."""

    def __init__(self, name: str) -> None:
        self.ids = Field(f"{name}.ids", "int", -1, size=MAX_WORD_IDS, fixed=True)
        self.wave = Field(f"{name}.wave", "int")
        self.amplitude = Field(f"{name}.amplitude", "float")
        self.period = Field(f"{name}.period", "float", 1.0)
        self.shift = Field(f"{name}.shift", "float")
        # start and stop of each window in turn; -1 = not given
        self.windows = Field(f"{name}.windows", "int", -1, size=2 * MAX_WINDOWS, fixed=True)
        self.output = Field(f"{name}.output", "bool", False)
        self.prompt = Field(f"{name}.prompt", "bool", False)
        self.until_end = Field(f"{name}.until_end", "bool", False)
        self.ended = Field(f"{name}.ended", "bool", False)
        super().__init__(
            name,
            *(self.ids, self.wave, self.amplitude, self.period, self.shift, self.windows),
            *(self.output, self.prompt, self.until_end, self.ended),
        )

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Schedule)
        ids = admission.vocabulary.words(
            config.words,
            f"{self.name}.words",
            forms=config.rules.forms,
            unknown=config.rules.unknown_words,
            limit=MAX_WORD_IDS,
        )
        return {
            self.ids: ids,
            self.wave: list(WAVES).index(config.wave),
            self.amplitude: config.amplitude,
            self.period: config.period,
            self.shift: config.shift,
            self.windows: [edge for window in config.windows for edge in window],
            self.output: config.rules.counted == "output",
            self.prompt: config.count_prompt,
            self.until_end: config.rules.active == "until_end",
        }

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        position = counted(rows, rows[self.output], rows[self.prompt])
        bias = schedule(
            rows[self.wave], rows[self.amplitude], rows[self.period], rows[self.shift], position
        )
        acts = torch.where(rows[self.until_end], ~rows[self.ended], rows.thinking)
        acts = acts & rows[self.on] & in_windows(rows[self.windows], position)
        bias = torch.where(acts, bias, 0.0)
        rows.record(self.name, bias)
        return add(logits, rows[self.ids], bias, rows)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        # Where the prompt has ended thinking, the phase does not change at a second end marker.
        marker = (rows[END_LENGTH] == 1) & (sampled == rows[END_IDS][:, 0])
        ended = marker | ((before != Phase.ANSWER) & (rows[PHASE] == Phase.ANSWER))
        rows.choose(self.ended, ended, True)


def in_windows(windows: Tensor, position: Tensor) -> Tensor:
    """Whether a position is in one of the windows, or none is given.

    Parameters
    ----------
    windows
        ``[num_rows, 2 * MAX_WINDOWS]`` int64: starts and stops in turn, ``-1`` for none.
    """
    starts, stops = windows[:, ::2], windows[:, 1::2]
    inside = (starts <= position[:, None]) & (position[:, None] < stops)
    return inside.any(dim=1) | (windows[:, 0] < 0)


STEPS = (ScheduleMethod("cyclic_reflex"),)
