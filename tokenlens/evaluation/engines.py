"""Engines by their names; what one is, is in :mod:`tokenlens.evaluation.engine`."""

from collections.abc import Callable
from typing import Any

from tokenlens.evaluation.engine import Engine


def open_engine(name: str, model: str, **settings: Any) -> Engine:
    """An engine by its name, with a model by a folder, a hub id, or an embedded model's name.

    Raises
    ------
    ValueError
        There is no such engine.
    ImportError
        It is not installed here.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: got {name!r}; allowed: {', '.join(ENGINES)}")
    return ENGINES[name](model, settings)


def _hf(model: str, settings: dict[str, Any]) -> Engine:
    from tokenlens.evaluation.engine_hf import HuggingFace

    return HuggingFace(model, **settings)


def _vllm(model: str, settings: dict[str, Any]) -> Engine:
    from tokenlens.evaluation.engine_vllm import VLLM

    return VLLM(model, **settings)


def _sglang(model: str, settings: dict[str, Any]) -> Engine:
    from tokenlens.evaluation.engine_sglang import SGLang

    return SGLang(model, **settings)


def _server(model: str, settings: dict[str, Any]) -> Engine:
    from tokenlens.evaluation.engine_server import ServedModel

    return ServedModel(model, **settings)


ENGINES: dict[str, Callable[[str, dict[str, Any]], Engine]] = {
    "hf": _hf,
    "vllm": _vllm,
    "sglang": _sglang,
    "server": _server,
}
