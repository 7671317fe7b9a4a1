"""The mark of a request that a front end with tokenlens has admitted. Knows no engine.

An engine may be reached by a front end that does not know us: one in another language, or a process
of the operator's own. What such a front end passes on was checked by nobody, has no trace and no
noise of its own, so an engine carries out only what bears the mark. It is a secret that processes
inherit through their environment; no client sees it.
"""

import hmac
import os
import secrets
from collections.abc import Mapping
from typing import Any

VARIABLE = "TOKENLENS_ADMISSION"
"""Environment variable with the secret. Where front end and engine are started apart from each
other, their operator sets the same text for both."""

ADMITTED_KEY = "_tokenlens_admitted"
"""Name of the mark among a request's extra arguments."""

UNADMITTED = (
    "tokenlens: got a spec that no front end with tokenlens has admitted; allowed: requests through"
    " a front end that loaded the plugin, which checks specs, counts samples and returns traces."
    f" Front ends that are started apart from their engine need the same {VARIABLE} as the engine"
)
"""Why a request is failed."""


def secret() -> str:
    """The secret of this process and of those that it will start; made when asked for first."""
    found = os.environ.get(VARIABLE)
    if not found:
        found = os.environ[VARIABLE] = secrets.token_hex(16)
    return found


def marked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a request that was admitted."""
    return {**arguments, ADMITTED_KEY: secret()}


def is_admitted(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments of a request bear the mark."""
    mark = arguments.get(ADMITTED_KEY)
    expected = os.environ.get(VARIABLE)
    if not expected or not isinstance(mark, str):
        return False
    return hmac.compare_digest(mark.encode(), expected.encode())
