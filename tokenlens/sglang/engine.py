"""``sglang.Engine`` with tokenlens, for use without a server."""

from collections.abc import Mapping
from typing import Any

from tokenlens.serving.settings import Settings


def engine(tokenlens: Settings | Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """An ordinary ``sglang.Engine`` that carries out specs.

    Parameters
    ----------
    tokenlens
        What its operator allows: :class:`tokenlens.sglang.Settings` or a mapping with its fields.
    **kwargs
        ``sglang.Engine``'s own.

    Returns
    -------
    sglang.Engine
        Give a request its spec with ``sampling_params={"custom_params":
        tokenlens.sglang.custom_params(spec), ...}``.

    Raises
    ------
    SpecError, UnsupportedError
        A wrong setting; an engine that cannot host specs.
    SystemExit
        Something that tokenlens wraps is not in this SGLang.

    Notes
    -----
    Other engines of the process, before and after, stay stock.
    """
    from tokenlens.sglang import plugin, switch

    switch.turn_on(tokenlens if isinstance(tokenlens, Settings) else dict(tokenlens or {}))
    try:
        import sglang

        plugin.register()
        plugin.check_all()
        return sglang.Engine(**kwargs)
    finally:
        # SGLang's processes have inherited it by now.
        switch.turn_off()
