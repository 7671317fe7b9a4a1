"""Models for lm-evaluation-harness, so that its tasks run through tokenlens.

``python -m tokenlens.evaluation.harness run --model tokenlens-hf --model_args
pretrained=MODEL,spec=SPEC --tasks TASK`` is lm-eval's own command with three more models.
``tokenlens-hf`` and ``tokenlens-vllm`` take every argument of ``hf`` and ``vllm``, and ``spec``: a
preset's name or a file. ``tokenlens-server`` takes a ``base_url`` (several with ``;`` between), and
loads no model. Importing this package makes them known to lm-eval.
"""

import lm_eval.models  # noqa: F401  its own come first
from lm_eval.api.registry import model_registry

MODELS = {
    "tokenlens-hf": "tokenlens.evaluation.harness.hf:TokenlensHF",
    "tokenlens-server": "tokenlens.evaluation.harness.server:TokenlensServer",
    "tokenlens-vllm": "tokenlens.evaluation.harness.vllm:TokenlensVLLM",
}

for name, target in MODELS.items():
    # By name: each imports its engine.
    model_registry.register(name, target=target)
