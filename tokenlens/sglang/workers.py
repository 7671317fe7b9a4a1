"""The HTTP application of SGLang's tokenizer workers, with tokenlens in their process.

With ``--tokenizer-worker-num`` above one, SGLang starts processes that import an application by its
name, and loads no plugins in them. This module is that name. That nothing is missing in this SGLang
was found out by the process that starts them.
"""

from tokenlens.sglang import plugin, switch

if switch.settings() is None:
    raise SystemExit("tokenlens: a tokenizer worker was started without the settings of its engine")
plugin.register()

from sglang.srt.entrypoints.http_server import app  # noqa: E402  # what it imports is wrapped first

__all__ = ["app"]
