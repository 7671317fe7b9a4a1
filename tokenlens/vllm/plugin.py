"""The plugin that vLLM loads in each of its processes, and what it installs.

``register`` is the entry point ``vllm.general_plugins: tokenlens``. It changes nothing by itself:
it waits for the modules in :mod:`tokenlens.vllm.wrapped`, and what it puts there acts only in
engines whose ``logits_processors`` name our class. It is needed because the scheduler may live in a
process that never loads logits processors, and because a compiled graph must not be shared with
engines without us.
"""

from contextlib import suppress
from importlib import import_module
from typing import Any

from tokenlens import __version__
from tokenlens.serving import admission, hooks
from tokenlens.serving.refusals import allows_layer_states, allows_shifts
from tokenlens.serving.settings import SETTINGS_KEY
from tokenlens.vllm.refusals import LAYERS, LOST, MARK, READ, asked_for, check_engine
from tokenlens.vllm.wrapped import ENDPOINTS, ENGINE

PACKAGE = "tokenlens.vllm"

_INSTALLED = False


def register() -> None:
    """Entry point; may be called any number of times in any process."""
    install()


def install() -> None:
    """Put the hooks in place, now or when their modules are imported."""
    global _INSTALLED
    if _INSTALLED:
        return
    _INSTALLED = True
    hooks.install(ENGINE, PACKAGE, LOST.append)
    hooks.install(ENDPOINTS, PACKAGE)


def _import_front_end() -> None:
    """Import what is wrapped outside the workers: then what of it is lost is known."""
    for name in ENGINE:
        if ".worker." not in name:
            with suppress(ModuleNotFoundError):
                import_module(name)


def create_engine_config(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse engines that cannot host specs, and mark the configuration."""
    config = original(self, *args, **kwargs)
    if asked_for(config):
        _import_front_end()
        settings = check_engine(config)
        # The engine's processes inherit it from this one.
        admission.secret()
        # Part of the key of vLLM's compile cache: a graph without our op must not be loaded.
        given = dict(config.additional_config or {})
        # Not every process of an engine has this one's environment.
        found = {"methods": list(settings.methods), "files": dict(settings.files)}
        found = {name: value for name, value in found.items() if value}
        if found:
            given[SETTINGS_KEY] = {**(given.get(SETTINGS_KEY) or {}), **found}
        if allows_shifts(settings):
            # Which layers have a seat is a matter of what is in the files, not of their names.
            from tokenlens.serving.layer_files import check_files, seated_layers
            from tokenlens.vllm.binding import shape_of

            check_files(settings, shape_of(config.model_config))
            given[LAYERS] = sorted(set(seated_layers(settings).values()))
        if allows_layer_states(settings):
            from tokenlens.serving.layer_files import reads_layers

            given[READ] = reads_layers(settings)
        config.additional_config = {**given, MARK: __version__}
    return config
