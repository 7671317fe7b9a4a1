"""Whether this process's engine runs with tokenlens, and what its operator allows.

The switch is an environment variable, because SGLang's processes inherit nothing else that a plugin
may set; its value is the operator's settings.
"""

import json
import os
from importlib.metadata import entry_points
from typing import Any

from tokenlens.errors import UnsupportedError
from tokenlens.serving import admission
from tokenlens.serving.settings import SETTINGS_KEY, Settings

VARIABLE = "TOKENLENS_SGLANG"
APPLICATION, OURS = "SGLANG_HTTP_SERVER_APP_PATH", "tokenlens.sglang.workers:app"
"""What SGLang's tokenizer workers serve: they load no plugins, this module does."""

GROUP, PLUGIN = "sglang.srt.plugins", "tokenlens"


def settings() -> Settings | None:
    """What the operator allows; ``None`` where tokenlens is off.

    Raises
    ------
    SpecError
        Names the wrong setting.
    """
    text = os.environ.get(VARIABLE)
    return None if text is None else Settings.of({SETTINGS_KEY: json.loads(text)})


def turn_on(values: Settings | dict[str, Any]) -> None:
    """Turn tokenlens on for engines that this process starts from now on.

    Raises
    ------
    SpecError, UnsupportedError
        A wrong setting; an environment in which SGLang's other processes would not load us.
    """
    if not isinstance(values, Settings):
        values = Settings.of({SETTINGS_KEY: values})
    values.read_files()
    check_loading()
    admission.secret()
    os.environ[VARIABLE] = values.model_dump_json()
    os.environ.setdefault(APPLICATION, OURS)


def turn_off() -> None:
    """Engines that this process starts from now on are stock again."""
    os.environ.pop(VARIABLE, None)
    if os.environ.get(APPLICATION) == OURS:
        del os.environ[APPLICATION]


def check_loading() -> None:
    """Refuse where SGLang would not load our plugin in each of its processes.

    Raises
    ------
    UnsupportedError
    """
    if not any(entry.name == PLUGIN for entry in entry_points(group=GROUP)):
        raise UnsupportedError(
            f"entry point: got no {PLUGIN!r} in {GROUP!r}; allowed: an entry of that name. Install"
            " tokenlens as a package, so that SGLang's processes find it"
        )
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    if allowed and PLUGIN not in {name.strip() for name in allowed.split(",")}:
        raise UnsupportedError(
            f"SGLANG_PLUGINS: got {allowed!r}; allowed: a list with {PLUGIN!r} in it, or nothing,"
            " because the scheduler's process would run without tokenlens"
        )
