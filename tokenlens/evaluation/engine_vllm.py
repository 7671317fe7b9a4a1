"""vLLM for evaluations, offline: one spec a request, a sampler's seed a request."""

from collections.abc import Sequence
from typing import Any

from tokenlens import assets
from tokenlens.evaluation.arms import Sampling
from tokenlens.evaluation.engines import EngineName, answer, counted, prompt_ids
from tokenlens.evaluation.records import Generated
from tokenlens.spec import DecodingSpec


class VLLM:
    """A model in stock vLLM; keyword arguments are those of ``vllm.LLM``."""

    name: EngineName = "vllm"

    def __init__(self, model: str, **settings: Any) -> None:
        from vllm import LLM

        processors = ["tokenlens.vllm:TokenLens"]
        self._llm = LLM(assets.path_of(model), logits_processors=processors, **settings)
        self._tokenizer = self._llm.get_tokenizer()

    def generate(
        self,
        prompts: Sequence[str],
        specs: Sequence[DecodingSpec],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        seed: int,
    ) -> list[Generated]:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        from vllm import SamplingParams

        from tokenlens.vllm import extra_args, trace

        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=max_new_tokens,
                seed=(seed + row) % (1 << 31),
                detokenize=False,
                extra_args=extra_args(counted(spec)),
            )
            for row, spec in enumerate(specs)
        ]
        ids: Any = [{"prompt_token_ids": prompt_ids(self._tokenizer, p)} for p in prompts]
        found = []
        for output in self._llm.generate(ids, params, use_tqdm=False):
            one, record = output.outputs[0], trace(output)
            assert record is not None
            ended = one.finish_reason == "stop"
            found.append(answer(self._tokenizer, one.token_ids, ended, record))
        return found

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()
