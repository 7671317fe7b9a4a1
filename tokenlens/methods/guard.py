"""Hooks of methods from outside: what goes wrong in one is told by name, and stays with it.

An exception becomes a :class:`MethodError` with the method and the hook. What a hook returns or
assigns is held to its shape and kind, which the host knows, and a row whose request does not name
the method keeps what it had, whether or not the author masked with ``rows[self.on]``. A tensor that
a hook is handed and changes in place is not seen, but for the logits, which are its own copy. Reads
no device value: :mod:`tokenlens.core.soundness` looks at those.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from tokenlens.core import columns
from tokenlens.core.columns import Field
from tokenlens.core.lifecycle import COMMON_FIELDS
from tokenlens.core.method import HOOKS, Method
from tokenlens.core.rows import Rows
from tokenlens.errors import MethodError, SpecError, cut
from tokenlens.spec.needs import Need

RAISES_NOTHING = "a hook that raises nothing. Mend its package, or leave the method out"


def guarded(kind: type[Method], name: str, latent: bool) -> type[Method]:
    """A method's class, the hooks that it has guarded.

    Parameters
    ----------
    latent
        The family of its config feeds mixtures.
    """
    members: dict[str, Any] = {"outside": True}
    for hook in (*AT_ADMISSION, *HOOKS):
        if getattr(kind, hook) is not getattr(Method, hook):
            members[hook] = _Guard(kind, name, hook, latent).hook()
    return type(kind.__name__, (kind,), members)


class _Guard:
    """Of one hook of a method."""

    def __init__(self, kind: type[Method], name: str, hook: str, latent: bool) -> None:
        self._run, self._name, self._hook, self._latent = getattr(kind, hook), name, hook, latent
        self._check = AT_ADMISSION.get(hook) or (_Guard.edit if hook == "edit" else _Guard.held)

    def hook(self) -> Callable[..., Any]:
        def guard(method: Method, *args: Any) -> Any:
            return self._check(self, method, *args)

        return guard

    def call(self, *args: Any) -> Any:
        try:
            return self._run(*args)
        except MethodError:
            raise
        except SpecError:
            if self._hook == "admit":
                raise  # about the client's own values
            self.fail("SpecError", RAISES_NOTHING)
        except Exception as error:  # the author's
            text = type(error).__name__
            made = MethodError.of_hook(self._name, self._hook, text, RAISES_NOTHING, str(error))
            raise made from error

    def fail(self, got: str, allowed: str) -> NoReturn:
        raise MethodError.of_hook(self._name, self._hook, got, allowed)

    def admit(self, method: Method, config: Any, admission: Any) -> Mapping[Field, Any]:
        values = self.call(method, config, admission)
        if not isinstance(values, Mapping):
            self.fail(_kind(values), "a dict of columns and values")
        known = {*method.fields, *COMMON_FIELDS} - KEPT
        for column, value in values.items():
            if not isinstance(column, Field) or column not in known:
                got = cut(str(getattr(column, "name", column)))
                allowed = "the method's own columns, and those of tokenlens.methods.columns"
                self.fail(f"the column {got!r}", allowed)
            several = isinstance(value, (list, tuple))
            numbers = value if several else (value,)
            if (several and column.size == 1) or any(type(n) not in NUMBERS for n in numbers):
                allowed = "a number" if column.size == 1 else f"up to {column.size} numbers"
                self.fail(f"{column.name} = {_kind(value)}", allowed)
        return values

    def needs(self, method: Method, config: Any) -> Need:
        found = self.call(method, config)
        if not isinstance(found, Need):
            self.fail(_kind(found), "flags of Need")
        declared = Need.NOTHING
        for need in config.needs():
            declared |= need
        if missing := found & (Need.OF_ENGINE | Need.OF_LAYERS) & ~declared:
            self.fail(
                str(missing), "what its config's needs() names, so that engines can refuse it"
            )
        return found

    def edits(self, method: Method, config: Any) -> bool:
        found = self.call(method, config)
        if not isinstance(found, bool):
            self.fail(_kind(found), "True or False")
        return found

    def edit(self, method: Method, logits: Tensor, rows: Rows) -> Tensor:
        before = rows.mark()
        # A copy, so that what is changed in place is no other request's.
        edited = self.call(method, logits.clone(), rows)
        self.same("logits", edited, logits)
        self.keep(method, rows, before)
        return torch.where(rows[method.on][:, None], edited, logits)

    def held(self, method: Method, rows: Rows, *given: Any) -> None:
        """Run a hook that returns nothing, and take back what it did to others' rows."""
        # What is asked of the signals, or proposed; the other hooks change columns alone.
        answer = given[-1] if self._hook in ANSWERED else None
        mark, before = rows.mark(), {} if answer is None else dict(vars(answer))
        try:
            self.call(method, rows, *given)
            self.keep(method, rows, mark)
        except MethodError as error:
            rows.restore(mark)
            if self._hook == "commit":
                self.apart(method, rows, error, *given)
            raise
        own = rows[method.on]
        for part, then in before.items():
            now: Any = getattr(answer, part, None)
            if now is then:
                continue
            if then is None:
                then = before["latent" if part == "mixes" else "weights"]
                then = torch.zeros_like(then)
            self.same(part, now, then)
            if part == "latent" and not self._latent:
                # The engine keeps no mixtures for it: it may only take them away.
                now = now & then
            setattr(answer, part, torch.where(own if now.dim() == 1 else own[:, None], now, then))

    def apart(self, method: Method, rows: Rows, error: MethodError, *given: Any) -> None:
        """Commit each row alone, as a step can be tried again and a commit cannot.

        Slow, and only ever done after an exception: the error says whose rows it is.
        """
        own, guilty = rows[method.on], []
        for row in own.nonzero()[:, 0].tolist():
            alone, mark = torch.zeros_like(own), rows.mark()
            alone[row] = True
            rows.pretend(method.on, alone)
            try:
                self.call(method, rows, *given)
                self.keep(method, rows, mark)
            except MethodError:
                rows.restore(mark)
                guilty.append(row)
            finally:
                rows.pretend(method.on, own)
        error.rows = tuple(guilty)

    def keep(self, method: Method, rows: Rows, mark: Any) -> None:
        """Hold what was assigned to its kind, and keep what other rows have in shared columns."""
        own, mine = rows[method.on], set(method.fields)
        for column, now, then in list(rows.changed(mark)):
            if column in KEPT:
                self.fail(f"a change of {column.name}", "none: the core keeps it itself")
            self.same(column.name, now, then, FITTING[column.kind])
            if column not in mine:
                rows[column] = torch.where(own if column.size == 1 else own[:, None], now, then)
        for part, then in mark.intended.items():
            now = getattr(rows, part)
            if now is not then:
                self.same(part, now, then)
                setattr(rows, part, torch.where(own, now, then))
        for name, amounts in rows.records.items():
            if amounts is mark.records.get(name):
                continue
            if name not in method.records:
                allowed = ", ".join(method.records) or "none, of a method without edit()"
                self.fail(f"a record of {cut(str(name))!r}", allowed)
            self.same("its record", amounts, own, _is_real)
            # It is written as JSON.
            rows.records[name] = torch.where(own, amounts, 0).float().nan_to_num(0, 0, 0)

    def same(
        self, what: str, value: Any, like: Tensor, fits: Callable[[torch.dtype], bool] | None = None
    ) -> None:
        """Refuse what has another shape, device or kind than something."""
        if not isinstance(value, Tensor):
            self.fail(f"{what} = {_kind(value)}", "a tensor")
        if value.dim() != like.dim() or value.shape != like.shape:
            shapes = [list(map(int, one.shape)) for one in (value, like)]
            self.fail(f"{what} of shape {shapes[0]}", f"the shape {shapes[1]}")
        is_fitting = value.dtype == like.dtype if fits is None else fits(value.dtype)
        if not is_fitting or value.device != like.device:
            got = f"{what} of {value.dtype} on {value.device}"
            self.fail(got, f"{like.dtype} on {like.device}")


AT_ADMISSION: Mapping[str, Callable[..., Any]] = {
    "admit": _Guard.admit,
    "needs": _Guard.needs,
    "edits": _Guard.edits,
}
ANSWERED = ("request_signals", "reweigh", "propose", "gate")
NUMBERS = (bool, int, float)


KEPT = frozenset(
    {
        *(columns.POSITION, columns.GENERATED, columns.ALIVE, columns.THINKING_TOKENS),
        *(columns.LATENT_STEPS, columns.FORCED_STEPS, columns.INVALID_STEPS),
        *(columns.PROMPT_THINKING, columns.EARLIER_THINKING),
    }
)
"""What engines rely on: how far a request is."""


def _is_real(dtype: torch.dtype) -> bool:
    return not dtype.is_complex


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_complex and not dtype.is_floating_point


FITTING: Mapping[str, Callable[[torch.dtype], bool]] = {
    "bool": lambda dtype: dtype == torch.bool,
    "int": _is_integer,
    "float": lambda dtype: dtype.is_floating_point,
}
"""What may be assigned to a column, by its kind."""


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
