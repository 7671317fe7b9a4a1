"""Methods that steer a request from outside the step: exits, hints, branches, votes.

A :class:`Controller` runs one of them over the backends of :mod:`tokenlens.routing`.
"""

from tokenlens.controllers.controller import Controller
from tokenlens.controllers.results import Line, Steered
from tokenlens.controllers.settings import Limits
from tokenlens.controllers.spec import CONTROLLERS, ControllerSpec, parse_controller
from tokenlens.controllers.tree import Node, SteerTrace
from tokenlens.controllers.votes import vote

__all__ = [
    "CONTROLLERS",
    "Controller",
    "ControllerSpec",
    "Limits",
    "Line",
    "Node",
    "SteerTrace",
    "Steered",
    "parse_controller",
    "vote",
]
