"""A method whose hooks raise where the environment says so, and classes that are no methods."""

import os
from typing import Literal

from pydantic import ConfigDict, Field

from tokenlens.methods import Column, Method, method
from tokenlens.spec import MethodBase


class Broken(MethodBase):
    """Raises in one hook."""

    family = ("latent",)

    method: Literal["broken"] = "broken"
    hook: Literal[
        "admit", "control", "edit", "request_signals", "reweigh", "propose", "gate", "commit", ""
    ] = Field("", description="that raises")


def raising(hook):
    def run(self, *args):
        if hook in HOOKS:
            raise RuntimeError(f"the author's mistake in {hook}")
        return args[0] if hook == "edit" else {} if hook == "admit" else None

    return run


HOOKS = set(filter(None, os.environ.get("BROKEN_HOOKS", "").split(",")))


@method(Broken, after="soft_thinking")
class BrokenMethod(Method):
    """Every hook is there."""

    def __init__(self):
        super().__init__("broken")

    def admit(self, config, admission):
        return raising("admit")(self, config)

    def control(self, rows):
        raising("control")(self, rows)

    def edit(self, logits, rows):
        return raising("edit")(self, logits)

    def request_signals(self, rows, request):
        raising("request_signals")(self, rows)

    def reweigh(self, rows, signals, proposal):
        raising("reweigh")(self, rows)

    def propose(self, rows, signals, proposal):
        raising("propose")(self, rows)

    def gate(self, rows, signals, proposal):
        raising("gate")(self, rows)

    def commit(self, rows, before, sampled):
        raising("commit")(self, rows)


class Unbounded(MethodBase):
    """A number of any size."""

    method: Literal["unbounded"] = "unbounded"
    scale: float = 1.0


class Text(MethodBase):
    """A text of any length."""

    method: Literal["text"] = "text"
    text: str = "x"


class WrongDefault(MethodBase):
    """A default beyond its own bound."""

    method: Literal["wrong_default"] = "wrong_default"
    scale: float = Field(7.0, ge=0, le=1)


class Loose(MethodBase):
    """Takes any field, and numbers written as texts."""

    model_config = ConfigDict(extra="allow", strict=False)

    method: Literal["loose"] = "loose"


class Plain(MethodBase):
    """Nothing is wrong with it."""

    method: Literal["plain"] = "plain"


class Min(MethodBase):
    """Has a name of ours."""

    method: Literal["min_p"] = "min_p"


def of(config, name=None, after="min_p", columns=(), bases=(Method,), **members):
    """A class with a config."""
    name = name or config.model_fields["method"].default
    init = {"__init__": lambda self: Method.__init__(self, name, *columns)}
    return method(config, after=after)(type("Made", bases, {**init, **members}))


UnboundedMethod = of(Unbounded)
TextMethod = of(Text)
WrongDefaultMethod = of(WrongDefault)
LooseMethod = of(Loose)
MinMethod = of(Min)
Nowhere = of(Plain, after="nowhere")
Behind = of(Plain, after="trace")
OtherName = of(Plain, name="other")
Column1 = of(Plain, columns=[Column("phase", "int")])
Column2 = of(Plain, columns=[Column("min_p.min_p", "float")])
Column3 = of(Plain, columns=[Column("plain.x", "int"), Column("plain.x", "int")])
Signature = of(Plain, edit=lambda self, logits: logits)
Undeclared = type("Undeclared", (Method,), {})
NoMethod = type("NoMethod", (), {})
Raises = of(Plain, __new__=lambda cls: 1 / 0)
NoConfig = method(dict, after="min_p")(type("NoConfig", (Method,), {}))
