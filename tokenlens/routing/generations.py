"""SGLang's own ``/generate``: token ids in and out, and its events.

Its log-probabilities are behind the temperature unless the batch is greedy or the server has
``SGLANG_RETURN_ORIGINAL_LOGPROB``; a greedy request's temperature counts as 1, so its own are raw
in any batch. Knows no connection.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenlens.errors import BackendError
from tokenlens.routing.backend import Ask, Chunk, Context, Finish
from tokenlens.routing.completions import Completions, sampling_fields
from tokenlens.routing.facts import Fact, Scale, fact_of, ranked
from tokenlens.routing.signals import TOP, FirstTokenSignals


class Generations(Completions):
    """SGLang by token ids."""

    path = "../generate"
    repeats = True

    def body(self, ask: Ask, context: Context, room: int, *, signals: bool) -> dict[str, Any]:
        """A request."""
        params: dict[str, Any] = {
            "max_new_tokens": room,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "no_stop_trim": True,
            "sampling_seed": ask.engine_seed,
            **sampling_fields(ask.sampling),
        }
        texts = [*(ask.ends.texts if ask.ends is not None else ()), *ask.stop_texts]
        if texts:
            params["stop"] = texts
        if ask.stop_ids:
            params["stop_token_ids"] = sorted(ask.stop_ids)
        body: dict[str, Any] = {
            "input_ids": list(context), "sampling_params": params, "stream": True,
        }  # fmt: skip
        params.update(self.carried(ask))
        count = TOP if signals else ask.facts
        if count:
            body.update(
                return_logprob=True, top_logprobs_num=count, logprob_start_len=-1,
                return_text_in_logprobs=signals,
            )  # fmt: skip
        return body

    def begin(self) -> "Stream":
        """What reads the events of one answer."""
        return Stream(self)

    def scoring(self, context: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
        """A request for the log-probabilities of ids behind a context."""
        return {
            "input_ids": [*context, *ids], "return_logprob": True,
            "logprob_start_len": len(context) - 1,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        }  # fmt: skip

    def probing(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A request for a token that has more fields."""
        return {"text": "x", "sampling_params": {"max_new_tokens": 1, "temperature": 0, **fields}}

    def scored(self, answer: Any, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of the ids at the end of a prompt."""
        entries = answer["meta_info"]["input_token_logprobs"][-len(ids) :]
        if [int(entry[1]) for entry in entries] != list(ids):
            raise ValueError("its log-probabilities are of other tokens")
        return [float(entry[0]) for entry in entries]


class Stream:
    """Events of one answer; each may hold all that came before it, or only what is new."""

    def __init__(self, dialect: Generations) -> None:
        self._dialect = dialect
        self._came = 0

    def chunks(self, data: str, ask: Ask, *, signals: bool) -> list[Chunk]:
        """What one event says.

        Raises
        ------
        BackendError
            As :meth:`Completions.chunks` does.
        """
        dialect = self._dialect
        try:
            event = json.loads(data)
            if event.get("error") is not None:
                raise BackendError(
                    dialect.role, "failed", "it broke off with an error",
                    detail=repr(event["error"]),
                )  # fmt: skip
            meta = event["meta_info"]
            new = tuple(int(i) for i in self._new(event["output_ids"], meta))
            own, tops = [], []
            if new and (ask.facts or signals):
                own = self._new(meta["output_token_logprobs"], meta)
                tops = self._new(meta["output_top_logprobs"], meta)
            facts = self._facts(new, own, tops, ask) if ask.facts else ()
            top = None
            if signals and tops and not self._came:
                words = sorted(((str(e[2]), float(e[0])) for e in tops[0]), key=lambda p: -p[1])
                top = FirstTokenSignals(tuple(words)[:TOP])
            finish = self._finish(meta.get("finish_reason"), ask)
            trip = dialect.tripped(meta, ask)
        except (
            ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
        ) as error:  # fmt: skip
            raise dialect.malformed(f"{type(error).__name__}: {error} in {data[:500]}") from None
        self._came += len(new)
        if trip is not None:
            new, facts, finish = new[:-1], (*facts[:-1], trip), "trip"
        if not new and finish is None:
            return []
        return [Chunk(new, "", len(new), top, finish, facts)]

    def _new(self, values: Any, meta: Any) -> list[Any]:
        """What an event adds: all of it, or what lies behind what came before."""
        total = int(meta["completion_tokens"])
        # A list of all may hold more than the event is about: SGLang goes on writing it.
        return list(values[self._came : total] if len(values) >= total else values)

    def _facts(
        self, new: Sequence[int], own: Sequence[Any], tops: Sequence[Any], ask: Ask
    ) -> tuple[Fact, ...]:
        # A greedy request's temperature counts as 1: its values are raw.
        scale: Scale = "raw" if ask.sampling.temperature in (0, 1) else self._dialect.scale
        made = []
        for token, entry, entries in zip(new, own, tops, strict=True):
            value = float(entry[0])
            if int(entry[1]) != token or not math.isfinite(value):
                raise ValueError("log-probabilities of another token, or no finite one")
            top = ranked({int(e[1]): float(e[0]) for e in entries}, ask.facts)
            made.append(fact_of(token, value, top, ask.sampling, scale, warped=ask.warped))
        return tuple(made)

    def _finish(self, reason: Any, ask: Ask) -> Finish | None:
        if not reason:
            return None
        kind = reason["type"]
        if kind == "length":
            return "length"
        if kind != "stop":
            raise BackendError(
                self._dialect.role, "truncated",
                "its answer ends for a reason that is no end of a text", detail=repr(reason),
            )  # fmt: skip
        matched = reason.get("matched")
        texts = (*(ask.ends.texts if ask.ends is not None else ()), *ask.stop_texts)
        ours = matched in texts if isinstance(matched, str) else matched in ask.stop_ids
        return "stop" if ours else "eos"
