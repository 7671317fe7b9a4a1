"""vLLM for evaluations, offline: one spec a request, a sampler's seed a request."""

from collections.abc import Sequence
from typing import Any

from tokenlens import assets
from tokenlens.evaluation.arms import ArmSampling
from tokenlens.evaluation.engine import EngineName, answer, counted, opened, phase_of, prompt_ids
from tokenlens.evaluation.records import Generated
from tokenlens.spec import DecodingSpec, PhaseConfig


class VLLM:
    """A model in stock vLLM; keyword arguments are those of ``vllm.LLM``."""

    name: EngineName = "vllm"

    def __init__(self, model: str, **settings: Any) -> None:
        from vllm import LLM

        from tokenlens.vllm.binding import reasoning_of

        processors = ["tokenlens.vllm:TokenLens"]
        self._llm = LLM(assets.path_of(model), logits_processors=processors, **settings)
        self._tokenizer = self._llm.get_tokenizer()
        self._reasoning = reasoning_of(self._llm.llm_engine.vllm_config, self._tokenizer)

    def generate(
        self,
        prompts: Sequence[str],
        specs: Sequence[DecodingSpec],
        sampling: ArmSampling,
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
        rows = [prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        ids: Any = [{"prompt_token_ids": row} for row in rows]
        found = []
        outputs = self._llm.generate(ids, params, use_tqdm=False)
        for prompt, row, spec, output in zip(prompts, rows, specs, outputs):
            one, record = output.outputs[0], trace(output)
            assert record is not None
            ended = one.finish_reason == "stop"
            is_opened = opened(self._tokenizer, prompt, self.decode(row), self.phase(spec))
            found.append(answer(self._tokenizer, one.token_ids, ended, record, is_opened))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return str(self._tokenizer.decode(list(ids)))

    def phase(self, spec: DecodingSpec) -> PhaseConfig:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return phase_of(self._tokenizer, spec, self._reasoning)

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()
