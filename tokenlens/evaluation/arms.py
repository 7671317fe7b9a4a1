"""What is compared: a spec with the engine's sampling, and the controls that it has to beat."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from tokenlens.controllers.spec import ControllerSpec, parse_controller
from tokenlens.spec import DecodingSpec, NoThinking, RandomRoute, SpecError, Top1, parse_spec
from tokenlens.spec.base import SMALLEST, StrictModel
from tokenlens.spec.registry import MethodConfig


class ArmSampling(StrictModel):
    """How the engine samples what tokenlens leaves to it. ``temperature`` 0 is greedy."""

    temperature: float = Field(0.6, ge=0, le=100)
    top_k: int = Field(0, ge=0, description="0 = off")
    top_p: float = Field(0.95, ge=SMALLEST, le=1)
    min_p: float = Field(0.0, ge=0, le=1)


GREEDY = ArmSampling(temperature=0.0, top_p=1.0)
DEFAULT_SAMPLING = ArmSampling()
MOST_LINES = 64
"""Of a vote at equal tokens."""
MOSTLY_LATENT = 0.95
"""A spec whose thinking is latent beyond this share is compared with a random half."""


class Arm(StrictModel):
    """One way to decode.

    Parameters
    ----------
    name
        Unique in a run.
    spec, sampling
        What tokenlens does, and what the engine does with the rest.
    controls
        Names of the arms that this one is a control of; empty for a spec of the user's.
    share_of
        The arm whose latent share a ``random_route`` of this one is set to, once it is known.
    steer
        What steers each answer from outside the step; ``None`` where nothing does.
    cost_of
        The steered arm whose tokens this vote is given, once they are known.
    """

    name: str = Field(min_length=1, max_length=100)
    spec: DecodingSpec
    sampling: ArmSampling = DEFAULT_SAMPLING
    controls: tuple[str, ...] = ()
    share_of: str | None = None
    steer: ControllerSpec | None = Field(None, exclude_if=lambda steer: steer is None)
    cost_of: str | None = Field(None, exclude_if=lambda arm: arm is None)

    def with_lines(self, ratio: float) -> "Arm":
        """The vote with as many lines as an answer's tokens pay for, at least one."""
        assert self.steer is not None
        steer = _vote(self.steer, min(MOST_LINES, max(1, round(ratio))))
        return self.model_copy(update={"steer": steer, "cost_of": None})

    def with_share(self, latent_share: float) -> "Arm":
        """The arm with the share of its ``random_route`` set; a half where nearly all is latent."""
        share = 0.5 if latent_share > MOSTLY_LATENT else round(latent_share, 3)
        others = [c for c in self.spec.methods if c.method != "random_route"]
        methods = (*others, RandomRoute(latent_share=share))
        return self.model_copy(
            update={"spec": self.spec.model_copy(update={"methods": methods}), "share_of": None}
        )


def arms_of(
    specs: Mapping[str, DecodingSpec | ControllerSpec],
    sampling: ArmSampling = DEFAULT_SAMPLING,
    controls: bool = True,
) -> list[Arm]:
    """An arm for each spec, and behind them the controls.

    A controller's is compared with greedy decoding, with one sampled line, and with a vote over as
    many lines as its tokens pay for, those that it threw away included.

    Each spec is compared with greedy decoding, with sampling at its own temperature and filters,
    and with ending the thinking at once; a latent one also with its mixtures replaced by their top
    entries, and with as many latent steps at random places. Controls that are the same for several
    specs run once.
    """
    arms = [_arm(name, spec, sampling) for name, spec in specs.items()]
    found: list[Arm] = []
    for arm in arms if controls else []:
        for control in _controls(arm):
            same = next(
                (
                    one
                    for one in found
                    if one.model_copy(update={"name": "", "controls": ()})
                    == control.model_copy(update={"name": "", "controls": ()})
                ),
                None,
            )
            if same is None:
                found.append(control)
            else:
                merged = same.model_copy(update={"controls": (*same.controls, arm.name)})
                found[found.index(same)] = merged
    return _unique([*arms, *found])


def lines_of(arms: Sequence[Arm], arm: Arm) -> str:
    """The arm of one sampled line, whose tokens are what a line of a vote costs."""
    return next(
        one.name
        for one in arms
        if arm.cost_of in one.controls and one.steer is None and one.sampling == arm.sampling
    )


def _arm(name: str, spec: DecodingSpec | ControllerSpec, sampling: ArmSampling) -> Arm:
    if isinstance(spec, ControllerSpec):
        return Arm(name=name, spec=DecodingSpec(), sampling=sampling, steer=spec)
    return Arm(name=name, spec=spec, sampling=sampling)


def _beside_steered(arm: Arm, steer: ControllerSpec) -> list[Arm]:
    of = (arm.name,)
    lines = arm.sampling if arm.sampling.temperature else DEFAULT_SAMPLING
    return [
        Arm(name="greedy", spec=arm.spec, sampling=GREEDY, controls=of),
        Arm(name=_sampling_name(lines), spec=arm.spec, sampling=lines, controls=of),
        Arm(
            name=f"a vote of {arm.name}'s tokens",
            spec=arm.spec,
            sampling=lines,
            controls=of,
            steer=_vote(steer, 1),
            cost_of=arm.name,
        ),
    ]


def _vote(steer: ControllerSpec, lines: int) -> ControllerSpec:
    """The same budgets and markers under a plain vote."""
    return parse_controller({**dict(steer), "policy": {"policy": "self_consistency", "n": lines}})


def _controls(arm: Arm) -> list[Arm]:
    if arm.steer is not None:
        return _beside_steered(arm, arm.steer)
    # Without noise of its own a control is the same whatever the seed.
    plain = DecodingSpec(phase=arm.spec.phase)
    of = (arm.name,)
    latent = arm.spec.latent
    matched = _matched(latent, arm.sampling)
    found = [
        Arm(name="greedy", spec=plain, sampling=GREEDY, controls=of),
        Arm(name=_sampling_name(matched), spec=plain, sampling=matched, controls=of),
    ]
    extra: list[tuple[str, str, tuple[MethodConfig, ...]]] = [
        ("no_thinking", "no_thinking", (NoThinking(),))
    ]
    if latent is not None:
        names = {config.method for config in arm.spec.methods}
        if "top1" not in names:
            extra.append(("top1", f"{arm.name} + top1", (*arm.spec.methods, Top1())))
        if not {"random_route", "top1"} & names:
            methods = (*arm.spec.methods, RandomRoute())
            extra.append(("random_route", f"{arm.name} + random_route", methods))
    for kind, name, methods in extra:
        try:
            # Not every method can be combined with every control; the spec knows.
            seed = None if kind == "no_thinking" else arm.spec.seed
            dumped = [config.model_dump() for config in methods]
            spec = parse_spec({**plain.model_dump(), "methods": dumped, "seed": seed})
        except SpecError:
            continue
        share_of = arm.name if kind == "random_route" else None
        found.append(
            Arm(name=name, spec=spec, sampling=arm.sampling, controls=of, share_of=share_of)
        )
    return found


def _matched(latent: object, sampling: ArmSampling) -> ArmSampling:
    """Sampling from the distribution that a latent method mixes, where it has one of its own."""
    if latent is None or not hasattr(latent, "temperature"):
        return sampling
    own = {name: getattr(latent, name, None) for name in ("temperature", "top_k", "top_p", "min_p")}
    return sampling.model_copy(update={k: v for k, v in own.items() if v is not None})


def _sampling_name(sampling: ArmSampling) -> str:
    parts = [f"sampling, T {sampling.temperature:g}"]
    parts += [f"top-k {sampling.top_k}"] if sampling.top_k else []
    parts += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    parts += [f"min-p {sampling.min_p:g}"] if sampling.min_p else []
    return ", ".join(parts)


def _unique(arms: Sequence[Arm]) -> list[Arm]:
    """Arms of the same name but another meaning get a number."""
    seen: dict[str, int] = {}
    found = []
    for arm in arms:
        seen[arm.name] = seen.get(arm.name, 0) + 1
        number = seen[arm.name]
        found.append(
            arm if number == 1 else arm.model_copy(update={"name": f"{arm.name} #{number}"})
        )
    return found
