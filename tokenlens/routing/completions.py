"""Completion requests and their events, in the two dialects that servers speak.

vLLM takes and gives token ids; so does SGLang on a path of its own (:mod:`.generations`). Any other
server takes and gives text: its stream is closed where the step ends, because such answers do not
say whether a stop string or the end of the text came. Knows no connection.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from tokenlens.errors import BackendError, ShapeError
from tokenlens.routing import logprobs
from tokenlens.routing.backend import Ask, Chunk, Context, Finish
from tokenlens.routing.carried import KEY, SpecField, tripped, tripwire, written
from tokenlens.routing.facts import Fact, Scale, fact_of, ranked
from tokenlens.routing.settings import Role, Sampling
from tokenlens.routing.signals import TOP, FirstTokenSignals

Api = Literal["vllm", "sglang", "text"]

STOPPED = frozenset({"stop", "eos", "eos_token", "stop_sequence"})
"""Reasons of servers that say that a text has ended, or met a text to stop at."""


def sampling_fields(how: Sampling) -> dict[str, Any]:
    """What a request says of sampling; what it left open is left out: the server's default is."""
    if how.temperature == 0:
        # Whatever else is said of it changes nothing.
        return {"temperature": 0.0, "top_p": 1.0}
    # Minus one: vLLM, SGLang and llama.cpp all take it for "off", and SGLang no 0.
    fields = {
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": -1 if how.top_k == 0 else how.top_k,
    }
    return {name: value for name, value in fields.items() if value is not None}


class Reads(Protocol):
    """Reads the events of one answer."""

    def chunks(self, data: str, ask: Ask, *, signals: bool) -> list[Chunk]:
        """What one event says."""


class Completions:
    """One server's dialect.

    Attributes
    ----------
    specs_in
        The field in which it takes decoding specs, if it does.
    path
        Of generation, below ``/v1/``.
    repeats
        Whether an event holds all that the ones before it held.
    counts
        Whether a server of text is asked for the log-probability of each token so as to count them;
        where it refuses, a token is an event.
    """

    path = "completions"
    repeats = False

    def __init__(self, role: Role, model: str, api: Api, specs_in: SpecField | None = None) -> None:
        self.role: Role = role
        self._model = model
        self._api: Api = api
        self.specs_in = specs_in
        self.counts = True
        # of its log-probabilities, once it was asked (HTTPBackend.log_prob_scale)
        self.scale: Scale = "raw"
        # the field in which it takes a tripwire, once it is known to (HTTPBackend.learn_trips)
        self.trips_in: SpecField | None = None

    def body(
        self, ask: Ask, context: Context, tokens_left: int, *, signals: bool
    ) -> dict[str, Any]:
        """A request."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": context if isinstance(context, str) else list(context),
            "max_tokens": tokens_left,
            "seed": ask.engine_seed,
            "stream": True,
            **sampling_fields(ask.sampling),
        }
        if signals:
            body["logprobs"] = TOP if self._api == "vllm" else 5
        elif ask.facts and self._api == "vllm":
            body.update(logprobs=ask.facts, return_tokens_as_token_ids=True)
        elif self._api == "text" and self.counts:
            # Tokens are counted by it.
            body["logprobs"] = 1
        if self._api == "vllm":
            body.update(
                return_token_ids=True,
                skip_special_tokens=False,
                spaces_between_special_tokens=False,
                include_stop_str_in_output=True,
                add_special_tokens=False,
                stop=[*(ask.ends.texts if ask.ends is not None else ()), *ask.stop_texts],
            )
            if ask.stop_ids:
                body["stop_token_ids"] = sorted(ask.stop_ids)
        body.update(self.carried(ask))
        return body

    def carried(self, ask: Ask) -> dict[str, Any]:
        """What a server with tokenlens is asked for: the request's own spec, and a tripwire."""
        asked, field = dict(ask.arguments), self.specs_in
        if ask.trip is not None and self.trips_in is not None:
            asked |= tripwire(ask.trip, ask.sampling, warped=ask.warped)
            field = self.trips_in
        if not asked:
            return {}
        assert field is not None
        return written(asked, field)

    def begin(self) -> "Reads":
        """What reads the events of one answer."""
        return self

    def chunks(self, data: str, ask: Ask, *, signals: bool) -> list[Chunk]:
        """What one event of a stream says.

        Raises
        ------
        BackendError
            ``failed``: an error in the middle; ``truncated``: it ended for a reason that is no end;
            ``malformed``: no completion, or log-probabilities that nobody can read.
        """
        try:
            event = json.loads(data)
            if event.get("error") is not None:
                raise BackendError(
                    self.role, "failed", "it broke off with an error", detail=repr(event["error"])
                )
            if not (event["choices"] if event.get("usage") is None else event.get("choices")):
                # The figures at the end come with no choice.
                return []
            choice = event["choices"][0]
            text, reason = str(choice["text"] or ""), choice.get("finish_reason")
            ids: tuple[int, ...] = ()
            if self._api == "vllm":
                ids = tuple(int(i) for i in choice["token_ids"] or ())
            facts: tuple[Fact, ...] = ()
            if ask.facts and self._api == "vllm":
                facts = self._of_ids(choice, ids, ask)
                words, top = list[str](), None
            else:
                words, top = self._facts(event, choice, signals)
            trip = self.tripped(event.get("kv_transfer_params"), ask)
        except (
            ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
        ) as error:  # fmt: skip
            raise self.malformed(f"{type(error).__name__}: {error} in {data[:500]}") from None
        if self._api == "vllm":
            count, words = len(ids), []
        else:
            words = words or ([text] if text else [])
            count = len(words)
        finish = self._finish(reason, choice.get("stop_reason"), ask)
        if trip is not None:
            # The end of the text is the tripwire's, and no part of it.
            ids, count, facts, finish = ids[:-1], count - 1, (*facts[:-1], trip), "trip"
        if not count and not text and finish is None:
            return []
        if len(words) < 2 or "".join(words) != text:
            return [Chunk(ids, text, count, top if count else None, finish, facts)]
        # One by one, so that what lies behind the end of a step is not counted.
        chunks = [Chunk((), word, 1) for word in words]
        chunks[0] = replace(chunks[0], signals=top)
        chunks[-1] = replace(chunks[-1], finish=finish)
        return chunks

    def _facts(
        self, event: Any, choice: Any, signals: bool
    ) -> tuple[list[str], FirstTokenSignals | None]:
        """Texts of the tokens, and the first one's signals where they are wanted and come."""
        try:
            words, top = logprobs.read(event, choice)
        except ShapeError as error:
            if signals:
                raise BackendError(
                    self.role, "malformed",
                    f"the server of {self._model!r} gives log-probabilities in a shape that is not"
                    f" known here ({error}); allowed: OpenAI's, in the way of vLLM, SGLang or"
                    " llama.cpp; policies that need none work all the same",
                ) from None  # fmt: skip
            # They would only have counted the tokens.
            return [], None
        # vLLM adds the sampled token to the largest ones.
        return words, FirstTokenSignals(top[0][:TOP]) if signals and top and top[0] else None

    def _of_ids(self, choice: Any, ids: tuple[int, ...], ask: Ask) -> tuple[Fact, ...]:
        """Facts of the tokens, which vLLM names by their ids."""
        found = choice.get("logprobs")
        if not ids:
            return ()
        made = []
        rows = zip(ids, found["token_logprobs"], found["top_logprobs"], strict=True)
        for token, value, entries in rows:
            values = {int(name.removeprefix("token_id:")): float(v) for name, v in entries.items()}
            own = values.get(token, -math.inf if value is None else float(value))
            if not math.isfinite(own):
                raise ValueError("a log-probability is no finite number")
            top = ranked(values, ask.facts)
            made.append(fact_of(token, own, top, ask.sampling, self.scale, warped=ask.warped))
        return tuple(made)

    def tripped(self, beside: Any, ask: Ask) -> Fact | None:
        """The distribution at which an answer was ended by the tripwire that was asked for.

        Parameters
        ----------
        beside
            The field of an answer in which its trace may be.
        """
        if ask.trip is None or self.trips_in is None or not beside:
            return None
        return tripped(beside.get(KEY))

    def _finish(self, reason: Any, stopped_by: Any, ask: Ask) -> Finish | None:
        """Why an answer ends here, if it does.

        Only a text that was asked for ends a step. What else servers put beside the reason (vLLM's
        ``stop_reason``, SGLang's ``matched_stop``) is the token that ended the text, where a model
        has several.
        """
        if isinstance(reason, dict):
            # SGLang's own: {"type": "stop", "matched": 2}
            reason = reason.get("type", reason)
        if reason is None or reason == "":
            return None
        if reason == "length":
            return "length"
        if not isinstance(reason, str) or reason not in STOPPED:
            raise BackendError(
                self.role, "truncated", "its answer ends for a reason that is no end of a text",
                detail=repr(reason),
            )  # fmt: skip
        texts: tuple[str, ...] = ask.ends.texts if ask.ends is not None else ()
        # A server of text is given none: its stream is closed where the step ends.
        is_ours = self._api == "vllm" and (
            (isinstance(stopped_by, str) and stopped_by in (*texts, *ask.stop_texts))
            or (isinstance(stopped_by, int) and stopped_by in ask.stop_ids)
        )
        return "stop" if is_ours else "eos"

    def probing(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A request for a token that has more fields."""
        return {"model": self._model, "prompt": "x", "max_tokens": 1, "temperature": 0, **fields}

    def scored(self, answer: Any, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of the ids at the end of a prompt."""
        entries = answer["choices"][0]["prompt_logprobs"][-len(ids) :]
        return [float(e[str(i)]["logprob"]) for e, i in zip(entries, ids)]

    def scoring(self, context: Sequence[int], ids: Sequence[int]) -> dict[str, Any]:
        """The request for them."""
        return {
            "model": self._model, "prompt": [*context, *ids], "max_tokens": 1, "temperature": 0,
            "prompt_logprobs": 0,
        }  # fmt: skip

    def malformed(self, what: object) -> BackendError:
        """The error for an answer of another shape."""
        return BackendError(
            self.role, "malformed",
            f"the server of {self._model!r} does not answer as completions do", detail=str(what),
        )  # fmt: skip
