"""``tokenlens route``: settings of the command line, and the server."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console

from tokenlens.routing.settings import ROLES, Role, RoutingSpec, parse_routing
from tokenlens.spec import SpecError

APIS = ("auto", "vllm", "text")


def run(
    console: Console,
    sides: Mapping[Role, tuple[str, str, str, str]],
    policy: str,
    threshold: str,
    host: str,
    port: int,
    settings: Sequence[str],
) -> None:
    """Serve until told to stop.

    Raises
    ------
    SpecError
        A setting is wrong, or no server answers.
    """
    spec = read_routing(policy, threshold)
    try:
        import uvicorn

        from tokenlens.routing.http import HTTPSettings
        from tokenlens.routing.serve import Target, build
        from tokenlens.routing.service import ServerSettings
    except ImportError as error:
        raise SpecError.of("route", str(error), "pip install '.[route,hf]' in a checkout") from None
    models: tuple[type[BaseModel], ...] = (HTTPSettings, ServerSettings)
    groups: list[dict[str, Any]] = [{}, {}]
    for setting in settings:
        name, _, value = setting.partition("=")
        place = [i for i, model in enumerate(models) if name in model.model_fields]
        if not place:
            known = sorted(name for model in models for name in model.model_fields)
            raise SpecError.of("setting", setting, "NAME=VALUE with one of " + ", ".join(known))
        groups[place[0]][name] = yaml.safe_load(value)
    checked: list[Any] = []
    for model, group in zip(models, groups):
        try:
            checked.append(model.model_validate(group))
        except ValidationError as error:
            raise SpecError.from_validation(model, error) from None
    targets = {}
    for role in ROLES:
        url, model_name, tokenizer, api = sides[role]
        if api not in APIS:
            raise SpecError.of(f"{role}_api", api, "one of " + ", ".join(APIS))
        # A key is a secret: from the environment, never from the command line.
        key = os.environ.get(f"TOKENLENS_{role.upper()}_API_KEY")
        targets[role] = Target(url, model_name or None, tokenizer or None, api, key)
    app, router, found = build(targets, spec, *checked)
    for role, one in found.items():
        console.print(f"{role}: {one.model} at {one.url} ({one.api})", highlight=False)
    console.print(f"hand-over: {router.handover}; policy: {spec.policy.policy}", highlight=False)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def read_routing(policy: str, threshold: str = "") -> RoutingSpec:
    """A routing spec from the command line.

    Raises
    ------
    SpecError
        It is none.
    """
    data: Any = policy
    if Path(policy).suffix in (".yaml", ".yml", ".json"):
        data = yaml.safe_load(Path(policy).read_text(encoding="utf-8"))
    elif policy.lstrip().startswith("{"):
        try:
            data = json.loads(policy)
        except ValueError as error:
            raise SpecError.of("policy", policy, f"JSON ({error})") from None
    spec = parse_routing(data)
    if not threshold:
        return spec
    if "threshold" not in type(spec.policy).model_fields:
        raise SpecError.of("threshold", threshold, f"nothing with the policy {spec.policy.policy}")
    try:
        value = float(threshold)
    except ValueError:
        raise SpecError.of("threshold", threshold, "a number, inf or -inf") from None
    values = spec.model_dump()
    values["policy"]["threshold"] = value
    return parse_routing(values)
