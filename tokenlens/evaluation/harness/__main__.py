"""lm-eval's command, with tokenlens' models."""

from lm_eval.__main__ import cli_evaluate

import tokenlens.evaluation.harness  # noqa: F401  makes the models known

cli_evaluate()
