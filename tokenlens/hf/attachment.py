"""What hangs on a model while a step is fed, and how it comes off.

Between the last look at the sampled tokens and the next forward pass, ``generate()`` calls nobody
but ``prepare_inputs_for_generation``, and during the forward pass mixtures wait for the embedding's
hook. At all other times the model is as it was: an exception that is raised and kept, by a notebook
for instance, leaves nothing on it. Knows nothing of decoding: it finds the run of the calling
thread and hands the call to it.
"""

import functools
import threading
import types
import weakref
from typing import Any, Protocol

from torch import nn

PREPARE = "prepare_inputs_for_generation"
FORWARD = "forward"
EMBEDDING, HEAD = "input embedding", "output embedding"


class Runner(Protocol):
    """What is attached."""

    model: nn.Module

    def prepare(self, bound: Any, *args: Any, **kwargs: Any) -> Any: ...

    def is_innermost(self) -> bool: ...

    def forwarded(self) -> None: ...

    def embedded(self, module: nn.Module, output: Any) -> Any: ...

    def head_input(self, hidden: Any) -> None: ...


class Attachment:
    """The runs of one model, and what each of them needs on the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # By thread; several where a call is made inside another one
        self.runs: dict[int, list[weakref.ref[Runner]]] = {}
        # Runs that need it, by identity: the wrapper of a method, a hook on a module
        self._needed: dict[str, set[int]] = {name: set() for name in (*_WRAPPERS, EMBEDDING, HEAD)}
        # PEFT and others set instance attributes of their own: what was there comes back.
        self._before: dict[str, Any] = {}
        self._hooks: dict[str, Any] = {}

    def current(self) -> Runner | None:
        """The run of the calling thread's innermost call, else its newest one."""
        runs = [run() for run in self.runs.get(threading.get_ident(), ())]
        alive = [run for run in runs if run is not None]
        inner = next((run for run in reversed(alive) if run.is_innermost()), None)
        return inner or (alive[-1] if alive else None)

    def wrap(self, run: Runner, name: str) -> None:
        """Wrap a method of the model's, until the run needs it no more."""
        with _LOCK:
            if not self._needed[name]:
                self._before[name] = self.model.__dict__.get(name)
                wrapper = _WRAPPERS[name](self, getattr(self.model, name))
                self.model.__dict__[name] = types.MethodType(wrapper, self.model)
            self._needed[name].add(id(run))

    def hook(self, *modules: nn.Module) -> None:
        """Hook the input embedding, and tables beside it, until the thread's run needs them not."""
        with _LOCK:
            if EMBEDDING not in self._hooks:
                hook = _hook(self)
                self._hooks[EMBEDDING] = [one.register_forward_hook(hook) for one in modules]
            self._needed[EMBEDDING].add(id(self.current()))

    def watch_head(self, run: Runner, module: nn.Module) -> None:
        """Show a run the output embedding's input, until it needs it no more."""
        with _LOCK:
            if HEAD not in self._hooks:
                self._hooks[HEAD] = [module.register_forward_pre_hook(_head_hook(self))]
            self._needed[HEAD].add(id(run))

    def drop(self, key: int, *names: str) -> None:
        """A run, by its identity, needs these no more; without names: nothing."""
        with _LOCK:
            for name in names or tuple(self._needed):
                if key in self._needed[name]:
                    self._needed[name].discard(key)
                    if not self._needed[name]:
                        self._take_off(name)

    def _take_off(self, name: str) -> None:
        if name in self._hooks:
            for handle in self._hooks.pop(name):
                handle.remove()
        elif name in self._before:
            before = self._before.pop(name)
            if before is None:
                self.model.__dict__.pop(name, None)
            else:
                self.model.__dict__[name] = before

    def forget(self, gone: Runner | None = None) -> None:
        """Drop runs that are gone, and one that is to go."""
        kept = {
            thread: [run for run in runs if run() is not None and run() is not gone]
            for thread, runs in self.runs.items()
        }
        self.runs = {thread: runs for thread, runs in kept.items() if runs}
        if not self.runs and _ATTACHMENTS.get(self.model) is self:
            del _ATTACHMENTS[self.model]


# nn.Module hashes by identity.
_ATTACHMENTS: weakref.WeakKeyDictionary[nn.Module, Attachment] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def attach(run: Runner) -> Attachment:
    """Attach a run to its model for the calling thread; it detaches itself when it dies."""
    with _LOCK:
        attachment = _ATTACHMENTS.get(run.model)
        if attachment is None:
            attachment = _ATTACHMENTS[run.model] = Attachment(run.model)
        attachment.runs.setdefault(threading.get_ident(), []).append(weakref.ref(run))
    weakref.finalize(run, _release, attachment, id(run))
    return attachment


def detach(run: Runner, attachment: Attachment) -> None:
    """Take a run off its model before it dies."""
    with _LOCK:
        attachment.drop(id(run))
        attachment.forget(run)


def _release(attachment: Attachment, key: int) -> None:
    with _LOCK:
        attachment.drop(key)
        attachment.forget()


# The functions below are closures over a weak reference: a deep copy of the model shares them, and
# they find out that the copy is not the model they were made for.


def _run_of(weak: "weakref.ref[Attachment]", model: nn.Module) -> Runner | None:
    here = weak()
    return here.current() if here is not None and here.model is model else None


def _on(model: nn.Module, original: Any) -> Any:
    """The original method, bound to the model that it is called on."""
    function = getattr(original, "__func__", None)
    if function is None or original.__self__ is model:
        return original
    return types.MethodType(function, model)


def _preparing(attachment: Attachment, original: Any) -> Any:
    weak = weakref.ref(attachment)

    # generate() reads this signature to validate its own arguments.
    @functools.wraps(original)
    def prepare(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = _run_of(weak, model)
        bound = _on(model, original)
        return bound(*args, **kwargs) if run is None else run.prepare(bound, *args, **kwargs)

    return prepare


def _forwarding(attachment: Attachment, original: Any) -> Any:
    weak = weakref.ref(attachment)

    @functools.wraps(original)
    def forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = _run_of(weak, model)
        try:
            return _on(model, original)(*args, **kwargs)
        finally:
            if run is not None:
                run.forwarded()

    return forward


_WRAPPERS = {PREPARE: _preparing, FORWARD: _forwarding}


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
