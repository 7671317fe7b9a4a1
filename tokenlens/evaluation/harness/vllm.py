"""lm-eval's vLLM model with a spec."""

from importlib import metadata
from typing import Any

from tokenlens import assets, versions
from tokenlens.evaluation.harness.specs import Repeats, read, refuse_scoring, refuse_several

_version = metadata.version


def _version_of(distribution_name: str) -> str:
    """A distribution's version; vLLM's also where a build for a CPU has another name."""
    found = versions.installed("vllm") if distribution_name == "vllm" else None
    return found or _version(distribution_name)


# lm-eval's module takes the function when it is imported, and asks it for vLLM's version.
metadata.version = _version_of
try:
    from lm_eval.models.vllm_causallms import VLLM
finally:
    metadata.version = _version


class TokenlensVLLM(VLLM):  # type: ignore[misc]
    """lm-eval's ``vllm`` with a spec."""

    def __init__(self, pretrained: str, spec: str = "", **kwargs: Any) -> None:
        self.decoding_spec, self._repeats = read(spec), Repeats()
        processors = ["tokenlens.vllm:TokenLens", *kwargs.pop("logits_processors", [])]
        super().__init__(assets.path_of(pretrained), logits_processors=processors, **kwargs)

    def generate_until(self, *args: Any, **kwargs: Any) -> Any:
        self._repeats = Repeats()
        return super().generate_until(*args, **kwargs)

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> Any:
        from tokenlens.vllm import extra_args

        if not generate or sampling_params is None:
            refuse_scoring(self.decoding_spec)
            return super()._model_generate(requests, generate, sampling_params)
        if not isinstance(sampling_params, list):
            sampling_params = [sampling_params.clone() for _ in requests]
        refuse_several(max((one.n for one in sampling_params), default=1))
        for one, ids in zip(sampling_params, requests):
            own = extra_args(self._repeats.spec(self.decoding_spec, ids))
            one.extra_args = {**(one.extra_args or {}), **own}
        return super()._model_generate(requests, generate, sampling_params)
