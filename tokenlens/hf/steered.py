"""Controllers inside ``generate()``: the model that it is called on is the one that writes."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenlens.controllers import Controller, ControllerSpec, parse_controller
from tokenlens.hf.given import tokenizer_of
from tokenlens.hf.routed import RoutedGenerate
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.vocabulary import RouterVocabulary


class SteeredGenerate(RoutedGenerate):
    """What ``generate(custom_generate=...)`` calls; ``traces`` are those of its last call."""

    def __init__(
        self, tokenizer: Any, spec: ControllerSpec, streamer: Any, max_sessions: int,
        scorers: Mapping[str, Callable[..., Any]],
    ) -> None:  # fmt: skip
        super().__init__(None, tokenizer, spec, streamer, max_sessions)
        self._scorers = scorers

    def _writer(self, model: Any, words: RouterVocabulary, num_rows: int) -> Controller:
        backend = HFBackend(model, words, max_sessions=self._max_sessions)
        return Controller(backend, self._spec, vocabulary=words, scorers=self._scorers)


def steered_generate_kwargs(
    tokenizer: Any,
    policy: ControllerSpec | Mapping[str, Any] | str,
    *,
    streamer: Any = None,
    max_sessions: int = 64,
    scorers: Mapping[str, Callable[..., Any]] | None = None,
) -> dict[str, Any]:
    """Arguments with which ``model.generate()`` is steered by a controller.

    Parameters
    ----------
    tokenizer
        The model's.
    policy
        A :class:`tokenlens.controllers.ControllerSpec`, a mapping, or a method's name; methods that
        need a second model are refused.
    streamer
        Yours: ``generate(streamer=...)`` is not handed on to a custom loop.
    max_sessions
        Lines and probes that keep a cache at once.
    scorers
        As :class:`tokenlens.controllers.Controller` takes them.

    Returns
    -------
    dict
        ``custom_generate``; its ``traces`` are those of the last call.

    Raises
    ------
    SpecError
        The settings are wrong, or (by ``generate()``) this model cannot carry them out.
    UnsupportedError
        By ``generate()``, for processors that many calls cannot share.

    Examples
    --------
    >>> kwargs = steered_generate_kwargs(tokenizer, "self_consistency")  # doctest: +SKIP
    >>> output = model.generate(**inputs, **kwargs, max_new_tokens=8192)  # doctest: +SKIP
    >>> kwargs["custom_generate"].traces[0].vote  # doctest: +SKIP
    """
    spec = parse_controller(policy)
    made = SteeredGenerate(tokenizer_of(tokenizer), spec, streamer, max_sessions, scorers or {})
    return {"custom_generate": made}
