"""tokenlens inside stock SGLang: ``python -m sglang.launch_server … --enable-tokenlens``.

Offline, ``tokenlens.sglang.engine(model_path=…)`` makes an ordinary ``sglang.Engine``. A request
brings its spec in ``custom_params``. Importing this package imports neither SGLang nor torch.
"""

from tokenlens.serving.settings import Settings
from tokenlens.sglang.arguments import custom_params
from tokenlens.sglang.engine import engine
from tokenlens.sglang.traces import trace

__all__ = ["Settings", "custom_params", "engine", "trace"]
