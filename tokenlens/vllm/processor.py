"""The one class that a vLLM user names; it is a logits processor of both model runners.

Being imported is being asked for: it installs the hooks of the process that it is imported in. What
decides tokens is in the core; what knows requests is in the runtime.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV1

from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.serving.arguments import asks, spec_of
from tokenlens.vllm.plugin import install
from tokenlens.vllm.refusals import MARK, check_engine, marked

if TYPE_CHECKING:
    from torch import Tensor

    from tokenlens.vllm.runtime import RunnerRuntime

try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsProcessor as LogitsProcessorV2,
    )
except ImportError:  # before 0.31 there was one interface
    LogitsProcessorV2 = object  # type: ignore[assignment, misc]

install()


class TokenLens(LogitsProcessorV1, LogitsProcessorV2):  # type: ignore[misc]
    """Carries specs out inside vLLM.

    ``LLM(model, logits_processors=["tokenlens.vllm:TokenLens"])`` or
    ``vllm serve MODEL --logits-processors tokenlens.vllm:TokenLens``; then a request brings its
    spec in ``SamplingParams(extra_args=tokenlens.vllm.extra_args(spec))`` or, over HTTP, in
    ``vllm_xargs``. Requests without a spec are decoded bit for bit as without the class.
    """

    is_tokenlens = True

    def __init__(self, vllm_config: Any, *_: Any) -> None:
        check_engine(vllm_config)
        if not marked(vllm_config.additional_config):
            raise UnsupportedError(
                f"additional_config: got no {MARK!r}, so tokenlens' plugin was not loaded when this"
                " engine was configured, and its cache would give the KV of mixtures away. If"
                " VLLM_PLUGINS is set, add tokenlens to it; otherwise install the package again."
            )
        # Set once the model is loaded, by the hooks of the second runner; the first needs none.
        self.runtime: RunnerRuntime | None = None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request whose spec is wrong; becomes HTTP 400.

        Raises
        ------
        SpecError
            Names each wrong field. A ``ValueError``.
        """
        try:
            spec_of(sampling_params.extra_args)
        except SpecError as error:
            raise ValueError(str(error)) from None

    # The first runner's interface: its sampler is wrapped instead, where it knows more.

    def is_argmax_invariant(self) -> bool:
        """The first runner calls such processors for random requests only; here it is a no-op."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing: requests are followed by their ids."""

    # The second runner's interface.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Whether the sampler has to come by for this request."""
        # Whether the spec can be carried out is not looked at here: the runtime fails the request.
        return asks(sampling_params.extra_args)

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    def apply(self, logits: "Tensor", ctx: Any = None) -> "Tensor":
        """Decide on the logits of a step (second runner), or leave them (first runner)."""
        if ctx is None or self.runtime is None:
            return logits
        return self.runtime.decide(logits, ctx)
