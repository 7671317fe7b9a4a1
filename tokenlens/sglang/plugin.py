"""The plugin that SGLang loads in each of its processes: a server flag, and hooks behind it.

``register`` is the entry point ``sglang.srt.plugins: tokenlens``. Without the flag it adds options
to the command line and refuses requests that bring a spec, and nothing else. With it, every place
that is wrapped is looked up first, and one that is missing ends the start: SGLang itself would log
it and go on.
"""

import argparse
import functools
import os
from types import ModuleType
from typing import Any

from tokenlens.errors import MethodError, SpecError, UnsupportedError
from tokenlens.serving import hooks, metrics
from tokenlens.serving.admission import UNADMITTED, is_admitted
from tokenlens.serving.arguments import asks
from tokenlens.serving.hooks import after_import
from tokenlens.serving.places import Places, check_place, ours
from tokenlens.sglang import switch
from tokenlens.sglang.hooks import ADMISSION, PACKAGE, check, refuse_missing
from tokenlens.sglang.refusals import check_engine
from tokenlens.sglang.traces import ENGINE
from tokenlens.sglang.wrapped import ALWAYS, CALLED, SWITCHED_ON

OPTIONS = {
    "tokenlens_methods": "methods",
    "tokenlens_allow": "allow",
    "tokenlens_files": "files",
    "tokenlens_max_entries": "max_entries",
    "tokenlens_max_trace_steps": "max_trace_steps",
    "tokenlens_history_mib": "history_mib",
    "tokenlens_vectors_mib": "vectors_mib",
}
"""Command-line options, and the settings that they are."""


def register() -> None:
    """Entry point; may be called any number of times in any process."""
    hooks.install(ALWAYS, PACKAGE)
    after_import("sglang.srt.entrypoints.http_server", _watch_bodies)
    try:
        is_on = switch.settings() is not None
    except MethodError as error:
        # SGLang logs what goes wrong in a plugin and goes on; this ends the process.
        raise SystemExit(f"tokenlens: {error}") from None
    if is_on:
        install_all()


def install_all() -> None:
    """Wrap everything, now or when its modules are imported."""
    hooks.install(SWITCHED_ON, PACKAGE, refuse_missing)


def check_all() -> None:
    """End the start if anything that is wrapped or called is not there.

    Raises
    ------
    SystemExit
    """
    check(ALWAYS, SWITCHED_ON, CALLED)


def add_cli_args(original: Any, parser: argparse.ArgumentParser) -> None:
    original(parser)
    group = parser.add_argument_group("tokenlens")
    group.add_argument(
        "--enable-tokenlens",
        action="store_true",
        help="Carry out the specs that requests bring in custom_params.",
    )
    group.add_argument(
        "--tokenlens-methods",
        nargs="*",
        help="Methods from outside, by their entry points; default: TOKENLENS_METHODS.",
    )
    group.add_argument(
        "--tokenlens-allow", nargs="*", help="Methods that requests may ask for; default: all."
    )
    group.add_argument(
        "--tokenlens-files",
        nargs="*",
        metavar="NAME=PATH",
        help="Safetensors files that methods read, by the names that specs give them; default:"
        " TOKENLENS_FILES.",
    )
    group.add_argument(
        "--tokenlens-max-entries", type=int, help="The most entries of a concept token (K)."
    )
    group.add_argument(
        "--tokenlens-no-full-traces",
        action="store_true",
        help="Refuse requests that ask for every step.",
    )
    group.add_argument(
        "--tokenlens-max-trace-steps", type=int, help="Steps of a full trace; the rest is counted."
    )
    group.add_argument(
        "--tokenlens-history-mib",
        type=float,
        help="Device memory for concept tokens that a retracted request is fed again.",
    )
    group.add_argument(
        "--tokenlens-vectors-mib",
        type=float,
        help="Device memory for vectors (hidden states, mixtures of the whole vocabulary).",
    )


def from_cli_args(original: Any, cls: Any, args: argparse.Namespace) -> Any:
    given = {setting: getattr(args, option, None) for option, setting in OPTIONS.items()}
    values = {setting: value for setting, value in given.items() if value is not None}
    if "files" in values:
        # Without a path it is an error of the setting.
        values["files"] = dict(one.partition("=")[::2] for one in values["files"])
    if getattr(args, "tokenlens_no_full_traces", False):
        values["full_traces"] = False
    if getattr(args, "enable_tokenlens", False):
        try:
            switch.turn_on(values)
        except (SpecError, UnsupportedError) as error:
            raise SystemExit(f"tokenlens: {error}") from None
        _check_start(args)
        check_all()
        install_all()
    elif values:
        raise SystemExit(
            f"tokenlens: got settings ({', '.join(values)}) without --enable-tokenlens; add it, or"
            " leave them out"
        )
    return original(cls, args)


def _check_start(args: argparse.Namespace) -> None:
    """Refuse early what can be seen on the command line: some ways to start skip later checks."""
    try:
        check_engine(args)
    except UnsupportedError as error:
        raise SystemExit(str(error)) from None


def check_server_args(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    if switch.settings() is not None:
        from sglang.srt.arg_groups.overrides import resolving_view

        check_engine(resolving_view(self))
    return result


def create_tokenized_object(original: Any, self: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    tokenized = original(self, obj, *args, **kwargs)
    params = getattr(tokenized, "sampling_params", None)
    asked = getattr(params, "custom_params", None)
    if not asked:
        return tokenized
    try:
        # Directly in there, and nowhere deeper.
        check_place(asked, (), "custom_params")
    except SpecError as error:
        metrics.count_refusal(ENGINE)
        raise ValueError(str(error)) from None
    if not asks(asked):
        return tokenized
    admission = vars(self).get(ADMISSION)
    if admission is None:
        # Else SGLang would carry the spec along, and nobody would read it.
        raise ValueError(WITHOUT)
    admission.admit(self, obj, params, getattr(tokenized, "input_ids", None))
    return tokenized


def add_request_to_queue(original: Any, self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """Fail a request, and no other, whose spec nobody has checked or nobody would carry out.

    SGLang has front ends that load no plugins. All ranks of an engine decide alike.
    """
    asked = req.sampling_params.custom_params
    if asked and asks(asked):
        on = switch.VARIABLE in os.environ
        if not on or not is_admitted(asked):
            rest = {key: value for key, value in asked.items() if not ours(key)}
            req.sampling_params.custom_params = rest or None
            req.set_finish_with_abort(UNADMITTED if on else WITHOUT)
    return original(self, req, *args, **kwargs)


def _watch_bodies(module: ModuleType) -> None:
    """Refuse specs that are in a place where SGLang's server would not look for them."""
    from starlette.middleware import Middleware

    refused = functools.partial(metrics.count_refusal, ENGINE)
    # The innermost: behind keys and decompression.
    module.app.user_middleware.append(Middleware(Places, places=places(), refused=refused))


def places() -> dict[str, tuple[str, ...] | None]:
    """Where specs belong, by the end of the path: see :class:`tokenlens.serving.places.Places`."""
    vertex = os.environ.get("AIP_PREDICT_ROUTE", "/vertex_generate")
    return {
        "/api/generate": None,
        vertex: ("parameters", "sampling_params", "custom_params"),
        "/generate": ("sampling_params", "custom_params"),
        "/v1/completions": ("custom_params",),
        "/v1/chat/completions": ("custom_params",),
        "/invocations": ("custom_params",),
    }


WITHOUT = (
    "custom_params: got a spec for tokenlens, but this engine was started without it; start it with"
    " --enable-tokenlens, or with tokenlens.sglang.engine(...)"
)
"""Why a request with a spec is refused by an engine without tokenlens."""
