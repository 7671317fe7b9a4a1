"""vLLM's structured outputs: where the grammar of a request begins.

The scheduler looks at the tokens that are written, and holds what follows the end of thinking; what
that is, its reasoning parser says (``v1/structured_output``). Knows no spec.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from tokenlens.serving.structure import Grammars


class Told(NamedTuple):
    """What a server tells the engine of one request's thinking, beside its prompt."""

    ended: bool | None = None
    parser_kwargs: dict[str, Any] | None = None


_told: ContextVar[Told | None] = ContextVar("tokenlens_told", default=None)


@contextmanager
def told(ended: bool | None, parser_kwargs: dict[str, Any] | None) -> Iterator[None]:
    """Remember what the server says while the request is being made."""
    token = _told.set(Told(ended, parser_kwargs))
    try:
        yield
    finally:
        _told.reset(token)


class GrammarsOf:
    """Grammars of one engine.

    Parameters
    ----------
    config
        vLLM's.
    tokenizer
        The model's.
    """

    def __init__(self, config: Any, tokenizer: Any) -> None:
        self._structured = getattr(config, "structured_outputs_config", None)
        self._name = str(getattr(self._structured, "reasoning_parser", "") or "")
        self._tokenizer = tokenizer
        self._own: Any = None
        self.facts = self._find()

    def _find(self) -> Grammars:
        if not self._name or self._tokenizer is None:
            return Grammars()
        if getattr(self._structured, "enable_in_reasoning", False):
            return Grammars(why="the engine runs with enable_in_reasoning; leave it out")
        why = (
            f"the reasoning parser {self._name!r} does not say which tokens end the thinking; start"
            " the engine with one that does, as qwen3 or deepseek_r1"
        )
        try:
            self._own = self._parser({})
            ends = ends_of(self._own)
            return Grammars(ends, spoken_of(self._own, ends), why)
        except Exception:  # a parser for other tokenizers, or of somebody else's
            return Grammars(why=why)

    def _parser(self, kwargs: dict[str, Any]) -> Any:
        from vllm.reasoning import ReasoningParserManager

        plugin = getattr(self._structured, "reasoning_parser_plugin", "") or ""
        if plugin:
            ReasoningParserManager.import_reasoning_parser(plugin)
        kind = ReasoningParserManager.get_reasoning_parser(self._name)
        return kind(self._tokenizer, **kwargs)

    def hold_from_start(self, prompt: Sequence[int]) -> bool:
        """Whether a grammar would hold the first token behind a prompt."""
        said = _told.get() or Told()
        if said.ended is not None:
            return said.ended
        parser = self._own
        if said.parser_kwargs:
            parser = self._parser(said.parser_kwargs)
            if ends_of(parser) != self.facts.ends:
                return True  # one that finds no thinking in such a chat
        return bool(parser.is_reasoning_end(list(prompt)))


def ends_of(parser: Any) -> frozenset[int]:
    """The tokens that end thinking for a reasoning parser, none where it looks at more than one."""
    from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser

    several = getattr(parser, "reasoning_end_token_ids", None)
    if several:
        return frozenset(int(token) for token in several)
    base = BaseThinkingReasoningParser
    plain = isinstance(parser, base) and all(
        getattr(type(parser), name) is getattr(base, name)
        for name in ("is_reasoning_end", "is_reasoning_end_streaming")
    )
    return frozenset([int(parser.end_token_id)]) if plain else frozenset()


def spoken_of(parser: Any, ends: frozenset[int]) -> frozenset[int]:
    """Of the tokens that end thinking those that vLLM feeds to the grammar (from 0.32 on)."""
    find = getattr(parser, "find_reasoning_end", None)
    if find is None:
        return frozenset()
    return frozenset(token for token in ends if find([token]).implicit)
