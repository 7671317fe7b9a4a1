"""Every exception of the package. Imports the standard library alone.

Catch :class:`TokenlensError` for all of them. Each says which field is meant, what was got, what is
allowed, and what to do; where several things are wrong, ``problems`` has one entry for each.
"""

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

MAX_SHOWN = 80
"""Characters of a wrong value that an error repeats."""

MAX_FIELD = 64
"""Characters of a field's name; a longer one was made up by whoever sent it."""

MAX_ALLOWED = 1000
"""Characters of what is allowed."""

MAX_PROBLEMS = 10
"""Wrong fields that an error names; the others are counted."""

MAX_MESSAGE = 6000
"""Characters of a whole message."""

MAX_DETAIL = 2000
"""Characters of a server's own words that are kept, for the log."""

# A few lines of YAML can stand for a list of billions, which must never be written out.
_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 12
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 2 * MAX_SHOWN


def cut(text: str, limit: int = MAX_SHOWN) -> str:
    """A text of one line, cut so that an error stays readable."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def shorten(value: object) -> str:
    """``repr`` of a value, cut so that an error stays readable."""
    try:
        text = _REPR.repr(value)
    except Exception:  # no integers of more than 4300 digits; a value may be of any class
        text = f"{type(value).__name__} that is too long to show"
    return cut(text)


@dataclass(frozen=True)
class ErrorDetail:
    """One thing that is wrong: its field, what was got, what is allowed and why, what to do."""

    field: str
    got: str
    allowed: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f". {self.hint}" if self.hint else ""
        return f"{self.field}: got {self.got}; allowed: {self.allowed}{hint}"


@dataclass(frozen=True)
class SpecProblem(ErrorDetail):
    """One wrong field of what a client wrote, bounded; ``allowed`` begins with the hint."""

    def __post_init__(self) -> None:
        # Together they repeat no more of a made-up name than of a wrong value.
        made_up = len(self.field) > MAX_FIELD
        shown = MAX_SHOWN // 2 if made_up else MAX_SHOWN
        object.__setattr__(self, "field", cut(self.field, shown))
        object.__setattr__(self, "got", cut(self.got, shown))
        # A list of what is allowed may be long, and the hint says which of it was meant.
        allowed = f"{self.hint}; {self.allowed}" if self.hint else self.allowed
        object.__setattr__(self, "hint", cut(self.hint, MAX_ALLOWED))
        object.__setattr__(self, "allowed", cut(allowed, MAX_ALLOWED))

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}; allowed: {self.allowed}"


class TokenlensError(Exception):
    """Base of all exceptions of the package.

    Parameters
    ----------
    message
        The text; without one it is made of the problems, one a line.
    problems
        What is wrong; without any, what the lines of the text say in the form of a problem:
        ``FIELD: got X; allowed: Y. HINT``.

    Attributes
    ----------
    field, got, allowed, hint
        Of the first problem; empty where an error is about no field.
    """

    problems: tuple[ErrorDetail, ...]

    def __init__(self, message: str = "", problems: Iterable[ErrorDetail] = ()) -> None:
        self.problems = tuple(problems) or tuple(_read(message))
        super().__init__(message or "\n".join(str(problem) for problem in self.problems))

    @property
    def field(self) -> str:
        """Name of the wrong field."""
        return self.problems[0].field if self.problems else ""

    @property
    def got(self) -> str:
        """What was got there."""
        return self.problems[0].got if self.problems else ""

    @property
    def allowed(self) -> str:
        """What is allowed there."""
        return self.problems[0].allowed if self.problems else ""

    @property
    def hint(self) -> str:
        """What to do, where that is not said by what is allowed."""
        return self.problems[0].hint if self.problems else ""

    def __reduce__(self) -> tuple[Any, ...]:
        # Engines hand errors from process to process; constructors differ from class to class.
        return _remake, (type(self), self.args, dict(vars(self)))


def _read(message: str) -> Iterator[ErrorDetail]:
    for line in message.splitlines():
        field, found, rest = line.removeprefix("tokenlens: ").partition(": got ")
        if found:
            got, _, allowed = rest.partition("; allowed: ")
            allowed, _, hint = allowed.partition(". ")
            yield ErrorDetail(field, got, allowed, hint)


def _remake(kind: type[TokenlensError], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


class SpecError(TokenlensError, ValueError):
    """A spec that cannot be carried out. ``problems`` has one entry for each wrong field.

    Parameters
    ----------
    problems
        Wrong fields; those beyond a bound are counted.
    more
        Wrong fields beyond those.
    """

    def __init__(self, problems: Iterable[ErrorDetail], more: int = 0) -> None:
        given = tuple(problems)
        kept = given[:MAX_PROBLEMS]
        more += len(given) - len(kept)
        lines = [str(problem) for problem in kept]
        if more:
            lines.append(f"and {more} more")
        text = "\n".join(lines)
        super().__init__(text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…", kept)

    @classmethod
    def of(cls, field: str, got: object, allowed: str, hint: str = "") -> Self:
        """An error about one field."""
        return cls([SpecProblem(field, shorten(got), allowed, hint)])


class UnsupportedError(TokenlensError, NotImplementedError, ValueError):
    """A setting of an engine, or of a call, that cannot host a spec.

    A ``NotImplementedError`` (which Hugging Face users may catch) and a ``ValueError`` (which users
    of vLLM and SGLang may) until release 0.3; catch this class, or :class:`TokenlensError`.
    """

    @classmethod
    def of(cls, field: str, got: object, allowed: str, hint: str = "") -> Self:
        """An error about one setting."""
        return cls(problems=[ErrorDetail(field, shorten(got), allowed, hint)])


class MethodError(UnsupportedError):
    """A method from outside that is missing or broken: its name, and the reason.

    Attributes
    ----------
    method
        Its name.
    hook
        In which of its hooks something went wrong while it ran; empty where it was not let in.
    summary
        What went wrong, without the words of the author's exception: those are for the log.
    rows
        Of a step, whose it is; empty where that is not known.
    """

    method = hook = summary = ""
    rows: tuple[int, ...] = ()

    @classmethod
    def of_method(cls, name: str, reason: str) -> Self:
        """An error about the method of a name."""
        made = cls(f"method {shorten(name)}: {cut(reason, MAX_ALLOWED)}")
        made.method = made.summary = name
        return made

    @classmethod
    def of_hook(cls, name: str, hook: str, got: str, allowed: str, detail: str = "") -> Self:
        """An error about what a hook did in a step, or for a request."""
        more = f" ({cut(detail, MAX_ALLOWED // 2)})" if detail else ""
        made = cls.of_method(name, f"got {got}{more} from its hook {hook}; allowed: {allowed}")
        made.hook = hook
        made.summary = f"the method {name} of this request gave {cut(got, 200)} in its hook {hook}"
        return made


class EmbeddingError(UnsupportedError):
    """A model whose input embedding cannot be mixed."""


class ProtocolError(TokenlensError, RuntimeError):
    """A loop around the model that does not do what its engine does: a mixture would be lost."""


class BackendError(TokenlensError, RuntimeError):
    """A routed model that did not answer, or not sensibly.

    Its text is ours and may go to a client. What the model's server wrote is ``detail``, for the
    log: it may name hosts, paths and other people's requests.

    Attributes
    ----------
    kind
        ``unreachable``, ``timeout``, ``refused`` (its 4xx, with ``status``), ``overloaded``,
        ``failed`` (5xx), ``truncated``, ``malformed``, ``open`` (not asked: circuit breaker).
    """

    def __init__(
        self,
        role: Literal["small", "large"],
        kind: str,
        message: str,
        status: int | None = None,
        detail: str = "",
    ) -> None:
        problem = ErrorDetail(f"the {role} model", f"{kind}: {message}", "an answer")
        super().__init__(f"the {role} model: {kind}: {message}", [problem])
        self.role, self.kind, self.status = role, kind, status
        self.detail = detail[:MAX_DETAIL]


class RequestError(TokenlensError, ValueError):
    """A router's request that cannot be carried out, in words for whoever sent it."""


class BodyError(TokenlensError, ValueError):
    """A router's request whose body is not taken, with the status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class QueueFullError(TokenlensError, RuntimeError):
    """As many requests of a router wait as may."""


class LimitError(TokenlensError, RuntimeError):
    """A steered request has used up one of its bounds: no more of that; the request goes on."""


class TooLongError(TokenlensError, ValueError):
    """More of a server's answer came than is allowed, or something whose length nobody can tell."""


class ShapeError(TokenlensError, ValueError):
    """Log-probabilities of a server whose shape is not known here."""


class TraceFileError(TokenlensError, ValueError):
    """A file that is not a trace, or not all of one.

    Parameters
    ----------
    recordings
        Everything before the fault, where the traces were read as a whole.
    """

    def __init__(self, message: str, recordings: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.recordings = tuple(recordings)


class FolderError(TokenlensError, ValueError):
    """A result folder of another evaluation."""


class ServersError(TokenlensError, OSError):
    """No server of an evaluation is left, or one refuses. What was answered is on disk."""


class AnswerError(TokenlensError, ValueError):
    """A server's answer that is not what an evaluation asked for."""


class NoTraceError(TokenlensError, ValueError):
    """A server that generates, and carries no spec out."""


class ScoringError(TokenlensError, RuntimeError):
    """Nothing of a batch could be scored; what was generated is on disk."""
