"""What hangs on a model while a run is alive: one wrapped method and, if needed, a forward hook.

Knows nothing of decoding: it finds the run of the calling thread and hands the call to it.
"""

import functools
import threading
import types
import weakref
from typing import Any, Protocol

from torch import nn

PREPARE = "prepare_inputs_for_generation"


class Runner(Protocol):
    """What is attached."""

    model: nn.Module

    def prepare(self, bound: Any, *args: Any, **kwargs: Any) -> Any: ...

    def embedded(self, module: nn.Module, output: Any) -> Any: ...

    def head_input(self, hidden: Any) -> None: ...


class Attachment:
    """The runs of one model, by thread. Taken off when the last of them is gone."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.runs: dict[int, weakref.ref[Runner]] = {}
        self._hook: Any = None
        self._head_hook: Any = None
        # PEFT and others set an instance attribute of their own: what was there comes back.
        self._before = model.__dict__.get(PREPARE)
        model.__dict__[PREPARE] = types.MethodType(_wrapper(self, getattr(model, PREPARE)), model)

    def current(self) -> Runner | None:
        """The run of the calling thread."""
        reference = self.runs.get(threading.get_ident())
        return reference() if reference is not None else None

    def hook(self, module: nn.Module) -> None:
        """Register the forward hook on the input embedding, once."""
        if self._hook is None:
            self._hook = module.register_forward_hook(_hook(self))

    def watch_head(self, module: nn.Module) -> None:
        """Register a hook on the output embedding that shows its input, once."""
        if self._head_hook is None:
            self._head_hook = module.register_forward_pre_hook(_head_hook(self))

    def release(self) -> None:
        """Drop runs that are gone, and leave the model as it was after the last one."""
        self.runs = {thread: run for thread, run in self.runs.items() if run() is not None}
        if self.runs or _ATTACHMENTS.get(self.model) is not self:
            return
        del _ATTACHMENTS[self.model]
        if self._hook is not None:
            self._hook.remove()
        if self._head_hook is not None:
            self._head_hook.remove()
        if self._before is None:
            self.model.__dict__.pop(PREPARE, None)
        else:
            self.model.__dict__[PREPARE] = self._before


# nn.Module hashes by identity.
_ATTACHMENTS: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def attach(run: Runner) -> Attachment:
    """Attach a run to its model for the calling thread; it detaches itself when it dies."""
    with _LOCK:
        attachment = _ATTACHMENTS.get(run.model)
        if attachment is None:
            attachment = _ATTACHMENTS[run.model] = Attachment(run.model)
        attachment.runs[threading.get_ident()] = weakref.ref(run)
    weakref.finalize(run, _release, attachment)
    return attachment


def detach(run: Runner, attachment: Attachment) -> None:
    """Take a run off its model before it dies."""
    with _LOCK:
        attachment.runs = {t: r for t, r in attachment.runs.items() if r() is not run}
        attachment.release()


def _release(attachment: Attachment) -> None:
    with _LOCK:
        attachment.release()


# The two functions below are closures over a weak reference: a deep copy of the model shares them,
# and they find out that the copy is not the model they were made for.


def _wrapper(attachment: Attachment, original: Any) -> Any:
    weak = weakref.ref(attachment)
    function = getattr(original, "__func__", None)

    # generate() reads this signature to validate its own arguments.
    @functools.wraps(original)
    def prepare(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        here = weak()
        if here is not None and here.model is model:
            run = here.current()
            return (
                original(*args, **kwargs) if run is None else run.prepare(original, *args, **kwargs)
            )
        bound = types.MethodType(function, model) if function is not None else original
        return bound(*args, **kwargs)

    return prepare


def _hook(attachment: Attachment) -> Any:
    weak = weakref.ref(attachment)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        here = weak()
        run = here.current() if here is not None else None
        return None if run is None else run.embedded(module, output)

    return hook


def _head_hook(attachment: Attachment) -> Any:
    weak = weakref.ref(attachment)

    def hook(module: nn.Module, args: Any) -> None:
        here = weak()
        run = here.current() if here is not None else None
        if run is not None and args:
            run.head_input(args[0])

    return hook
