"""``tokenlens route``: two addresses and a policy become a server."""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import FastAPI

from tokenlens.errors import SpecError
from tokenlens.routing.discovery import Endpoint, check_urls, discover
from tokenlens.routing.http import HTTPBackend, HTTPSettings
from tokenlens.routing.metrics import Metrics
from tokenlens.routing.router import Router
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings
from tokenlens.routing.settings import ROLES, Role, RoutingSpec, other
from tokenlens.routing.vocabulary import RouterVocabulary


@dataclass(frozen=True)
class Target:
    """One server as the command line gives it."""

    url: str
    model: str | None = None
    tokenizer: str | None = None
    api: str = "auto"
    api_key: str | None = None


def endpoints(targets: dict[Role, Target], settings: HTTPSettings) -> dict[Role, Endpoint]:
    """Ask both servers what they are.

    Raises
    ------
    SpecError
        Wrong addresses, nobody answers, or a tokenizer cannot be loaded.
    """
    roles = [role for role in ROLES if role in targets]
    check_urls({role: targets[role].url for role in roles})

    async def both() -> list[Endpoint | None]:
        calls = [discover(role, targets[role].url, settings, model=targets[role].model,
                          tokenizer=targets[role].tokenizer, api=targets[role].api,
                          api_key=targets[role].api_key) for role in roles]  # fmt: skip
        return await asyncio.gather(*calls)

    found = dict(zip(roles, asyncio.run(both())))
    for role in roles:
        if found[role] is None and len(roles) > 1 and found[other(role)] is None:
            raise SpecError.of(
                "small and large", " and ".join(targets[name].url for name in ROLES),
                "at least one server that answers /v1/models: neither does",
            )  # fmt: skip
        if found[role] is None:
            raise SpecError.of(
                role, targets[role].url,
                f"a server that answers /v1/models, or --{role}-model, --{role}-api and"
                f" --{role}-tokenizer, which say what it will be once it is up",
            )  # fmt: skip
    return {role: one for role, one in found.items() if one is not None}


def backends_of(
    found: dict[Role, Endpoint],
    targets: dict[Role, Target],
    http: HTTPSettings,
    metrics: Metrics,
) -> dict[Role, HTTPBackend]:
    """The servers as backends."""
    return {
        role: HTTPBackend(
            role,
            one.url,
            one.model,
            api=one.api,
            settings=http,
            api_key=targets[role].api_key,
            on_error=functools.partial(metrics.failed, role),
            max_length=one.max_length,
            lead=one.lead,
            specs_in=one.specs_in,
        )
        for role, one in found.items()
    }


def vocabularies_of(found: dict[Role, Endpoint]) -> dict[Role, RouterVocabulary | None]:
    """Tokenizers of those that are given ids: of a server of text it writes the chats, no more."""
    return {role: one.vocabulary if one.api != "text" else None for role, one in found.items()}


def build(
    targets: dict[Role, Target],
    spec: RoutingSpec,
    http: HTTPSettings,
    server: ServerSettings,
    keys: Sequence[str] = (),
) -> tuple[FastAPI, Router, dict[Role, Endpoint]]:
    """The application, and what it found; ``keys`` are those of clients."""
    found = endpoints(targets, http)
    metrics = Metrics()
    backends = backends_of(found, targets, http, metrics)
    templates = {role: one.vocabulary for role, one in found.items()}
    read = vocabularies_of(found)
    router = Router(
        backends["small"], backends["large"], spec,
        small_vocabulary=read["small"], large_vocabulary=read["large"],
    )  # fmt: skip
    return make_app(router, server, metrics, templates, keys), router, found
