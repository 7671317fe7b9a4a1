"""Whether somebody compiled a model in one graph, into which nothing can be fed by a hook."""

from typing import Any

from torch import nn

ONE_GRAPH = (
    "torch.compile: {} was compiled with fullgraph=True, and mixtures go in through a hook of the"
    " input embedding, which breaks the graph. Use cache_implementation='static', which generate()"
    " compiles itself, compile with fullgraph=False, or leave the model as it is."
)


def one_graph(model: nn.Module, inside: nn.Module) -> str | None:
    """Name of a module that was compiled with ``fullgraph=True`` around another, if there is one.

    Parameters
    ----------
    inside
        The input embedding.

    Returns
    -------
    str or None
        ``"the model"``, or the module's name in the model.
    """
    for name, module in model.named_modules():
        whole = any(getattr(one, "fullgraph", False) for one in _compiled(module))
        if whole and any(part is inside for part in module.modules()):
            return name or "the model"
    return None


def compiled_part(model: nn.Module) -> str | None:
    """Name of a module of a model that somebody compiled, if there is one, as above."""
    for name, module in model.named_modules():
        if any(one is not None for one in _compiled(module)):
            return name or "the model"
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether calling the model is compiled, hooks and all (``model.compile()``)."""
    return getattr(model, "_compiled_call_impl", None) is not None


def _compiled(module: nn.Module) -> tuple[Any, ...]:
    return (
        getattr(module, "dynamo_ctx", None),
        _context(module.__dict__.get("forward")),
        _context(getattr(module, "_compiled_call_impl", None)),
    )


def _context(function: Any) -> Any:
    """What torch.compile keeps in the function that it returns."""
    function = getattr(function, "__func__", function)
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(code, "co_freevars", ()), cells):
        if name == "self" and hasattr(cell.cell_contents, "fullgraph"):
            return cell.cell_contents
    return None
