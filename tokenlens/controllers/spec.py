"""All methods by name, and the spec that asks for one of them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from tokenlens.controllers.flow import ControllerMethod
from tokenlens.controllers.methods.best_of_n import BestOfN, MostConfident
from tokenlens.controllers.methods.cntp import Cntp, Trials
from tokenlens.controllers.methods.concise_hint import ConciseHint, Hints
from tokenlens.controllers.methods.conditional_entropy import ConditionalEntropy, Falling
from tokenlens.controllers.methods.confidence_pool import ConfidencePool, Confidences
from tokenlens.controllers.methods.cure import Cure, Regeneration
from tokenlens.controllers.methods.deer import Deer, Exits
from tokenlens.controllers.methods.dynasor import Agreement, Dynasor
from tokenlens.controllers.methods.ellipsis import Dots, Ellipsis
from tokenlens.controllers.methods.fetch import Fetch, Searching
from tokenlens.controllers.methods.first_try import Candidates, FirstTry
from tokenlens.controllers.methods.icn import InContextNavigation, Navigation
from tokenlens.controllers.methods.latr import Latr, Rollout
from tokenlens.controllers.methods.reverse_speculative import Approval, ReverseSpeculative
from tokenlens.controllers.methods.self_consistency import SelfConsistency, Voting
from tokenlens.controllers.methods.trimr import TrimR, Verified
from tokenlens.controllers.settings import Frame, PolicyBase
from tokenlens.errors import SpecError
from tokenlens.routing.settings import parsed

CONTROLLERS: dict[str, tuple[type[PolicyBase], Callable[..., ControllerMethod]]] = {
    "best_of_n": (BestOfN, MostConfident),
    "cntp": (Cntp, Trials),
    "concise_hint": (ConciseHint, Hints),
    "conditional_entropy": (ConditionalEntropy, Falling),
    "confidence_pool": (ConfidencePool, Confidences),
    "cure": (Cure, Regeneration),
    "deer": (Deer, Exits),
    "dynasor": (Dynasor, Agreement),
    "ellipsis": (Ellipsis, Dots),
    "fetch": (Fetch, Searching),
    "first_try": (FirstTry, Candidates),
    "icn": (InContextNavigation, Navigation),
    "latr": (Latr, Rollout),
    "reverse_speculative": (ReverseSpeculative, Approval),
    "self_consistency": (SelfConsistency, Voting),
    "trimr": (TrimR, Verified),
}
"""Config and class by the name that goes into the field ``policy``."""

AnyPolicy = (
    BestOfN
    | Cntp
    | ConciseHint
    | ConditionalEntropy
    | ConfidencePool
    | Cure
    | Deer
    | Dynasor
    | Ellipsis
    | Fetch
    | FirstTry
    | InContextNavigation
    | Latr
    | ReverseSpeculative
    | SelfConsistency
    | TrimR
)


class ControllerSpec(Frame):
    """How one request is steered from outside the step.

    Parameters
    ----------
    policy
        The method: its name, or its config.
    """

    policy: Annotated[AnyPolicy, Field(discriminator="policy")]

    @model_validator(mode="before")
    @classmethod
    def _name_of_policy(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("policy"), str):
            return {**data, "policy": {"policy": data["policy"]}}
        return data

    def check_limits(self) -> None:
        """Hold what the method can use at most to the bounds.

        Raises
        ------
        SpecError
            It can use more.
        """
        needed = self.policy.needed()
        for name in ("forks", "probes"):
            wanted, most = getattr(needed, name), getattr(self.limits, name)
            if wanted > most:
                raise SpecError.of(
                    f"policy.{self.policy.policy}", f"{wanted} {name}",
                    f"at most {most} a request (limits.{name})",
                )  # fmt: skip

    def method(self) -> ControllerMethod:
        """What writes one request."""
        return CONTROLLERS[self.policy.policy][1](self.policy)


def name_of(data: Any) -> str | None:
    """The name of a controller in what might be a controller's or a router's spec."""
    if isinstance(data, ControllerSpec):
        return data.policy.policy
    policy = data.get("policy") if isinstance(data, Mapping) else data
    name = policy.get("policy") if isinstance(policy, Mapping) else policy
    return name if isinstance(name, str) and name in CONTROLLERS else None


def parse_controller(data: "ControllerSpec | Mapping[str, Any] | str") -> ControllerSpec:
    """A controller's spec from a mapping or a method's name.

    Raises
    ------
    SpecError
        Names each wrong field, what was got, and what is allowed.
    """
    return parsed(ControllerSpec, "controller", CONTROLLERS, data)
