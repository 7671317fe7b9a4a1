"""``tokenlens route`` with a controller: one address, or two, become a server."""

from collections.abc import Sequence

from fastapi import FastAPI

from tokenlens.controllers.controller import Controller
from tokenlens.controllers.spec import ControllerSpec
from tokenlens.routing.discovery import Endpoint
from tokenlens.routing.http import HTTPSettings
from tokenlens.routing.metrics import Metrics
from tokenlens.routing.serve import Target, backends_of, endpoints, vocabularies_of
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings
from tokenlens.routing.settings import Role


def build(
    targets: dict[Role, Target],
    spec: ControllerSpec,
    http: HTTPSettings,
    server: ServerSettings,
    keys: Sequence[str] = (),
) -> tuple[FastAPI, Controller, dict[Role, Endpoint]]:
    """The application, and what it found; the model that writes is the large one."""
    found = endpoints(targets, http)
    metrics = Metrics()
    backends = backends_of(found, targets, http, metrics)
    read = vocabularies_of(found)
    controller = Controller(
        backends["large"], spec, vocabulary=read["large"], second=backends.get("small"),
        second_vocabulary=read.get("small"),
    )  # fmt: skip
    templates = {role: one.vocabulary for role, one in found.items()}
    return make_app(controller, server, metrics, templates, keys), controller, found
