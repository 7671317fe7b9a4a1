"""What ``tokenlens doctor`` says about SGLang. Imports no SGLang: it reads what is installed."""

from tokenlens import versions
from tokenlens.errors import UnsupportedError
from tokenlens.sglang import switch


def facts() -> list[tuple[str, str]]:
    """Names and findings, one line each."""
    found = versions.installed("sglang")
    if found is None:
        return [("sglang", "not installed; tokenlens supports " + versions.supported("sglang"))]
    problem = versions.problem("sglang", found)
    return [
        ("sglang", found),
        ("tested with tokenlens", "yes" if problem is None else f"no: {problem}"),
        ("plugin", plugin()),
    ]


def plugin() -> str:
    """Whether SGLang will load our plugin in each of its processes."""
    try:
        switch.check_loading()
    except UnsupportedError as error:
        return str(error)
    return "found; it adds --enable-tokenlens to the server, which without it refuses specs"
