"""Compiled steps are made while an engine starts: none is made between two steps of a server.

What is made follows from the methods that the operator allows, each with its defaults; batches of
anything else are eager. Knows no engine.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tokenlens.core import Core
from tokenlens.errors import SpecError
from tokenlens.serving.binding import Binder
from tokenlens.spec import parse_spec
from tokenlens.spec.registry import NEEDS_LATENT

SOFT = {"method": "soft_thinking"}
COLD = {**SOFT, "cold_stop": {}}


def compositions(allow: Sequence[str] | None) -> Iterator[tuple[dict[str, Any], ...]]:
    """Method lists that requests are likely to have, of those that are allowed.

    Parameters
    ----------
    allow
        Method names; ``None``: all, of which the common ones are taken.
    """
    allowed = ("soft_thinking", "gumbel_noise") if allow is None else tuple(allow)
    if "soft_thinking" in allowed:
        for soft in (SOFT, COLD):
            yield (soft,)
            if "gumbel_noise" in allowed:
                yield (soft, {"method": "gumbel_noise"})
    for name in allowed:
        if name in NEEDS_LATENT and name != "gumbel_noise" and "soft_thinking" in allowed:
            yield (SOFT, {"method": name})
        elif name not in NEEDS_LATENT and name != "soft_thinking":
            yield ({"method": name},)


def warm(
    core: Core, binder: Binder, allow: Sequence[str] | None, logger: logging.Logger
) -> tuple[int, int]:
    """Make the forms of a core's steps, on a device; returns how many, and of how many.

    A method that this model cannot have, or that has no defaults, is left out.
    """
    if core.forms is None:
        return 0, 0
    began, made, wanted = time.perf_counter(), 0, 0
    for methods in compositions(allow):
        try:
            request = binder.bind(parse_spec({"methods": methods}), binder.turn_ends)
            made += core.forms.warm(core, [request], binder.width, torch.float32, in_place=True)
        except (SpecError, ValueError):
            continue
        wanted += 1
    seconds = time.perf_counter() - began
    logger.info("tokenlens: %d of %d compiled steps made in %.0f s", made, wanted, seconds)
    return made, wanted
