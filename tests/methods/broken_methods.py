"""Classes that are no methods, each wrong in one way."""

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from tokenlens.methods import Column, Method, method
from tokenlens.spec import MethodBase
from tokenlens.spec.base import Recipe


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


def config(name="plain", annotations=(), **members):
    """A config of a name, with more in it."""
    values = {"method": name, **members}
    values["__annotations__"] = {"method": Literal[name], **dict(annotations)}
    return type(
        "Config", (MethodBase,), {"__doc__": "Of a test.", "__module__": __name__, **values}
    )


def fails(kind, text):
    """Something that raises, whatever it is given."""

    def run(*_):
        raise kind(text)

    return run


class Late(MethodBase):
    """A default that raises."""

    method: Literal["plain"] = "plain"
    scale: float = Field(default_factory=lambda: 1 / 0, ge=0, le=1)


class Checked(MethodBase):
    """A validator that raises what no validator may."""

    method: Literal["plain"] = "plain"

    @model_validator(mode="after")
    def check(self):
        """Raises."""
        raise RuntimeError("no check")


class NoName(Method):
    """Never given a name."""

    def __init__(self):
        Method.__init__(self, "plain")
        del self.name


X = Column("plain.x", "int")
NoName = method(Plain, after="min_p")(NoName)
NoJson = of(config(annotations={"x": Any}, x=object()), "plain")
LateDefault = of(Late)
Validator = of(Checked)
Entries = of(config(entries=fails(KeyError, "max")), "plain")
Needs = of(config(needs=lambda self: None), "plain")
WORD = ClassVar[Any]
OneWord = of(config(annotations={"family": WORD}, family="latent"), "plain")
Texts = of(config(annotations={"requires": WORD}, requires=("soft_thinking",)), "plain")
Recipes = of(config(annotations={"recipes": WORD}, recipes={"x": None}), "plain")
SOFT = {"soft": Recipe("ours", ({"method": "plain"},))}
OurRecipe = of(config(annotations={"recipes": WORD}, recipes=SOFT), "plain")
NoPlace = of(Plain, after=None)
Columns = of(Plain, fields=property(fails(RuntimeError, "no columns"), lambda *_: None))
TextColumn = of(Plain, columns=[Column("plain.x", "text")])
FloatDefault = of(Plain, columns=[Column("plain.x", "int", 0.5)])
LargeDefault = of(Plain, columns=[Column("plain.x", "int", 2**64)])
NanDefault = of(Plain, columns=[Column("plain.x", "float", float("nan"))])
HugeColumn = of(Plain, columns=[Column("plain.x", "int", size=1_000_000)])
Foreign = of(Plain, columns=[Column("other.x", "int")])
NoSwitch = of(Plain, fields=property(lambda self: (X,), lambda *_: None))
NoCounters = of(Plain, counters=None)
Uncounted = of(Plain, counters={"x": X})
OurCounter = of(Plain, columns=[X], counters={"tokens": X})
LoudCounter = of(Plain, columns=[X], counters={"A B": X})
RaisingCounters = of(Plain, counters=property(fails(RuntimeError, "no counters")))
RaisingRecords = of(Plain, records=property(fails(RuntimeError, "no records")))
ForeignRecords = of(Plain, records=("min_p",))
Serves = of(Plain, serves=lambda self, config: True)
Admits = of(Plain, admit=lambda self, config: {})
Exits = of(Plain, __new__=fails(SystemExit, "3"))
HiddenMethod = of(config("hidden_feedback"), "hidden_feedback")
GateNamed = of(config("gate"), "gate")
