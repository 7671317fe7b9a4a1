"""SGLang for evaluations, offline: one spec a request, a sampler's seed a request."""

from collections.abc import Sequence
from typing import Any

from tokenlens import assets
from tokenlens.evaluation.arms import ArmSampling
from tokenlens.evaluation.engine import EngineName, answer, counted, opened, phase_of, prompt_ids
from tokenlens.evaluation.records import Generated
from tokenlens.spec import DecodingSpec, PhaseConfig


class SGLang:
    """A model in stock SGLang; keyword arguments are those of ``sglang.Engine``."""

    name: EngineName = "sglang"

    def __init__(self, model: str, **settings: Any) -> None:
        from transformers import AutoTokenizer

        from tokenlens.sglang import engine
        from tokenlens.sglang.binding import reasoning_of

        path = assets.path_of(model)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        # Seeds of requests count only where sampling is deterministic.
        self._engine = engine(
            model_path=path, **{"enable_deterministic_inference": True, **settings}
        )
        self._reasoning = reasoning_of(self._engine.tokenizer_manager.server_args)

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
        from tokenlens.sglang import custom_params, trace

        params = [
            {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or -1,
                "min_p": sampling.min_p,
                "max_new_tokens": max_new_tokens,
                "sampling_seed": (seed + row) % (1 << 31),
                "skip_special_tokens": False,
                "no_stop_trim": True,
                "custom_params": custom_params(counted(spec)),
            }
            for row, spec in enumerate(specs)
        ]
        ids = [prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        found = []
        outputs = self._engine.generate(input_ids=ids, sampling_params=params)
        for prompt, row, spec, output in zip(prompts, ids, specs, outputs):
            record, meta = trace(output), output["meta_info"]
            assert record is not None
            ended = meta["finish_reason"]["type"] == "stop"
            is_opened = opened(self._tokenizer, prompt, self.decode(row), self.phase(spec))
            found.append(answer(self._tokenizer, output["output_ids"], ended, record, is_opened))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return str(self._tokenizer.decode(list(ids)))

    def phase(self, spec: DecodingSpec) -> PhaseConfig:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return phase_of(self._tokenizer, spec, self._reasoning)

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown()
