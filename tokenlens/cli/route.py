"""``tokenlens route``: settings of the command line, and the server."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console

from tokenlens.controllers.spec import ControllerSpec, name_of, parse_controller
from tokenlens.errors import SpecError
from tokenlens.routing.settings import ROLES, Role, RoutingSpec, parse_routing
from tokenlens.spec.errors import translated
from tokenlens.spec.load import MAX_SPEC_BYTES
from tokenlens.spec.yaml_text import load_yaml
from tokenlens.trace.files import open_regular

LOCAL = ("127.0.0.1", "localhost", "::1")
APIS = ("auto", "vllm", "sglang", "text")


ENVIRONMENT = "TOKENLENS_ROUTE_API_KEY"


@dataclass(frozen=True)
class Access:
    """Who may ask, and whom the router trusts, as the command line gives it."""

    keys: Sequence[str] = ()
    key_file: str = ""
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    ca_file: str = ""

    def api_keys(self) -> tuple[str, ...]:
        """Keys from all three places, each once.

        Raises
        ------
        SpecError
            A key that no client could send, or a file without one.
        """
        found = list(self.keys)
        if (listed := os.environ.get(ENVIRONMENT)) is not None:
            found += listed.split(",")
            if not listed.strip(" ,"):
                # Set and empty is a secret that did not arrive: not a server for everybody.
                raise SpecError.of(ENVIRONMENT, listed, "keys, or not set at all")
        if self.key_file:
            # A pipe may be where a secret comes from; what has no end is not.
            with Path(self.key_file).open("rb") as file:
                content = file.read(MAX_SPEC_BYTES + 1)
            if len(content) > MAX_SPEC_BYTES:
                allowed = f"a file of at most {MAX_SPEC_BYTES} bytes"
                raise SpecError.of("api_key_file", self.key_file, allowed)
            lines = content.decode("utf-8-sig").splitlines()
            in_file = [line.strip() for line in lines if line.strip() and line[0] != "#"]
            if not in_file:
                raise SpecError.of("api_key_file", self.key_file, "a file with a key in a line")
            found += in_file
        if any(not key.strip() for key in self.keys):
            raise SpecError.of("api_key", "an empty one", "a text; without the option, no key")
        keys = tuple(dict.fromkeys(key.strip() for key in found if key.strip()))
        for key in keys:
            if not (key.isascii() and key.isprintable() and " " not in key):
                # Not repeated: it may be a secret all the same.
                raise SpecError.of("api_key", "one with spaces or letters beyond ASCII", "neither")
        return keys


def run(
    console: Console,
    sides: Mapping[Role, tuple[str, str, str, str]],
    policy: str,
    threshold: str,
    host: str,
    port: int,
    settings: Sequence[str],
    access: Access | None = None,
) -> None:
    """Serve until told to stop.

    Raises
    ------
    SpecError
        A setting is wrong, or no server answers.
    """
    spec = read_policy(policy, threshold)
    steers = isinstance(spec, ControllerSpec)
    given = {role: side for role, side in sides.items() if side[0]}
    if steers and list(given) == ["small"]:
        # One model is the one that writes.
        given = {"large": given["small"]}
    for role in ("large",) if steers else ROLES:
        if role not in given:
            raise SpecError.of(role, "no address", f"--{role}, the address of a server")
    try:
        import uvicorn

        from tokenlens.controllers import serve as steered
        from tokenlens.routing import serve as routed
        from tokenlens.routing.http import HTTPSettings
        from tokenlens.routing.listen import config
        from tokenlens.routing.serve import Target
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
    access = access or Access()
    keys = access.api_keys()
    named: dict[str, Any] = {"ca_file": access.ca_file or None, "cors_origins": access.origins,
             "allowed_hosts": access.hosts}  # fmt: skip
    for field, wanted in named.items():
        if wanted:
            groups[0 if field == "ca_file" else 1][field] = wanted
    # Whoever binds to a name goes by it.
    groups[1]["allowed_hosts"] = [*_several(groups[1].get("allowed_hosts", ())), host]
    checked: list[Any] = []
    for model, group in zip(models, groups):
        try:
            checked.append(model.model_validate(group))
        except ValidationError as error:
            raise translated(model, error) from None
    targets = {}
    for role, (url, model_name, tokenizer, api) in given.items():
        if api not in APIS:
            raise SpecError.of(f"{role}_api", api, "one of " + ", ".join(APIS))
        # A key is a secret: from the environment, never from the command line.
        key = os.environ.get(f"TOKENLENS_{role.upper()}_API_KEY")
        targets[role] = Target(url, model_name or None, tokenizer or None, api, key)
    app: Any
    router: Any
    if isinstance(spec, ControllerSpec):
        app, router, found = steered.build(targets, spec, checked[0], checked[1], keys)
    else:
        app, router, found = routed.build(targets, spec, checked[0], checked[1], keys)
    for role, one in found.items():
        console.print(f"{role}: {one.model} at {one.url} ({one.api})", highlight=False)
    console.print(f"hand-over: {router.handover}; policy: {spec.policy.policy}", highlight=False)
    if not keys and host not in LOCAL:
        console.print(
            f"no API key: whoever reaches {host} uses both models; see --api-key-file",
            highlight=False,
        )
    uvicorn.Server(config(app, host, port, checked[1])).run()


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _read(path: str) -> Any:
    """A routing spec's file, as bounded as a spec's."""
    with open_regular(path) as file:
        content = file.read(MAX_SPEC_BYTES + 1)
    if len(content) > MAX_SPEC_BYTES:
        raise SpecError.of("policy", path, f"a file of at most {MAX_SPEC_BYTES} bytes")
    try:
        return load_yaml(content.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError.of("policy", path, f"YAML in UTF-8 ({error})") from None


def read_policy(policy: str, threshold: str = "") -> RoutingSpec | ControllerSpec:
    """A router's or a controller's spec from the command line.

    Raises
    ------
    SpecError
        It is neither.
    """
    data = _data(policy)
    if name_of(data) is None:
        return read_routing(policy, threshold)
    spec = parse_controller(data)
    if not threshold:
        return spec
    values = spec.model_dump()
    values["policy"]["threshold"] = _number(spec, threshold)
    return parse_controller(values)


def read_controller(text: str) -> ControllerSpec | None:
    """A controller's spec from a file, JSON or a method's name; ``None`` where it is none.

    Raises
    ------
    SpecError
        It is one, and its settings are wrong.
    """
    try:
        data = _data(text)
    except SpecError:
        # Whoever reads decoding specs says what is wrong with it.
        return None
    return None if name_of(data) is None else parse_controller(data)


def _data(policy: str) -> Any:
    if Path(policy).suffix in (".yaml", ".yml", ".json"):
        return _read(policy)
    if policy.lstrip().startswith("{"):
        try:
            return json.loads(policy)
        except (ValueError, RecursionError) as error:
            raise SpecError.of("policy", policy, f"JSON ({error})") from None
    return policy


def _number(spec: RoutingSpec | ControllerSpec, threshold: str) -> float:
    if "threshold" not in type(spec.policy).model_fields:
        raise SpecError.of("threshold", threshold, f"nothing with the policy {spec.policy.policy}")
    try:
        return float(threshold)
    except ValueError:
        raise SpecError.of("threshold", threshold, "a number, inf or -inf") from None


def read_routing(policy: str, threshold: str = "") -> RoutingSpec:
    """A routing spec from the command line.

    Raises
    ------
    SpecError
        It is none.
    """
    spec = parse_routing(_data(policy))
    if not threshold:
        return spec
    values = spec.model_dump()
    values["policy"]["threshold"] = _number(spec, threshold)
    return parse_routing(values)
