"""Completion requests and their events, in the two dialects that servers speak.

vLLM takes and gives token ids. Any other server (SGLang, ...) takes and gives text: its stream is
closed where the step ends, because such answers do not say whether a stop string or the end of the
text came. Knows no connection.
"""

import json
import math
from dataclasses import replace
from typing import Any, Literal

from tokenlens.routing.backend import Ask, BackendError, Chunk, Context
from tokenlens.routing.settings import Role
from tokenlens.routing.signals import TOP, Signals

Api = Literal["vllm", "text"]


class Completions:
    """One server's dialect.

    Attributes
    ----------
    counts
        Whether a server of text is asked for the log-probability of each token so as to count them;
        where it refuses, a token is an event.
    """

    def __init__(self, role: Role, model: str, api: Api) -> None:
        self._role: Role = role
        self._model = model
        self._api: Api = api
        self.counts = True

    def body(self, ask: Ask, context: Context, room: int, *, signals: bool) -> dict[str, Any]:
        """A request."""
        how = ask.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": context if isinstance(context, str) else list(context),
            "max_tokens": room,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "seed": ask.engine_seed,
            "stream": True,
        }
        if signals:
            body["logprobs"] = TOP if self._api == "vllm" else 5
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
                stop=list(ask.ends.texts) if ask.ends is not None else [],
            )
        if how.top_k:
            body["top_k"] = how.top_k
        return body

    def chunks(self, data: str, signals: bool) -> list[Chunk]:
        """What one event of a stream says.

        Raises
        ------
        BackendError
            ``failed``: an error in the middle; ``malformed``: no completion.
        """
        try:
            event = json.loads(data)
            if "error" in event:
                raise BackendError(self._role, "failed", str(event["error"])[:500])
            if not event["choices"]:
                return []
            choice = event["choices"][0]
            text, reason = choice["text"] or "", choice["finish_reason"]
            facts = choice.get("logprobs")
            ids: tuple[int, ...] = ()
            words = [text] if text else []
            if self._api == "vllm":
                ids = tuple(int(i) for i in choice["token_ids"] or ())
                count = len(ids)
            else:
                words = (facts and [str(word) for word in facts["tokens"]]) or words
                count = len(words)
            top = self._top(facts["top_logprobs"][0]) if signals and facts and count else None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self.malformed(f"{type(error).__name__}: {error}") from None
        finish: Any = {"length": "length", None: None}.get(reason, "stop")
        if finish == "stop" and choice.get("stop_reason", choice.get("matched_stop")) is None:
            # No stop string: the end of the text.
            finish = "eos"
        if not count and not text and finish is None:
            return []
        if len(words) < 2 or "".join(words) != text:
            return [Chunk(ids, text, count, top, finish)]
        # One by one, so that what lies behind the end of a step is not counted.
        chunks = [Chunk((), word, 1) for word in words]
        chunks[0] = replace(chunks[0], signals=top)
        chunks[-1] = replace(chunks[-1], finish=finish)
        return chunks

    def _top(self, entries: dict[str, Any]) -> Signals:
        pairs = sorted(((t, float(v)) for t, v in entries.items()), key=lambda pair: -pair[1])
        # vLLM adds the sampled token to the largest ones.
        return Signals(tuple((t, v) for t, v in pairs[:TOP] if not math.isnan(v)))

    def malformed(self, what: object) -> BackendError:
        """The error for an answer of another shape."""
        return BackendError(self._role, "malformed", f"not what a completion looks like: {what}")
