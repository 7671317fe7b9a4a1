"""Where rollouts come from: ``generate()`` of Hugging Face, or vLLM in this process.

An engine has ``roll_out(prompts, seeds, limit)``, prompts as token ids, which gives traces, and
``load(model)``, which gives it the policy's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from policy import Decoding

from tokenlens.trace import Trace

Prompts = Sequence[Sequence[int]]


class HuggingFace:
    """The policy itself generates."""

    preemptions = 0

    def __init__(self, model: Any, tokenizer: Any, how: Decoding) -> None:
        self._model, self._tokenizer, self._how = model, tokenizer, how

    def load(self, model: Any) -> None:
        """Nothing to do: it is the same model."""

    def roll_out(self, prompts: Prompts, seeds: Sequence[int], limit: int) -> list[Trace]:
        """One answer a prompt, each with its own seed."""
        from tokenlens.hf import generate_kwargs, traces

        inputs = self._tokenizer.pad(
            {"input_ids": [list(prompt) for prompt in prompts]},
            padding_side="left",
            return_tensors="pt",
        )
        kwargs = generate_kwargs(self._model, self._tokenizer, [self._how.spec(s) for s in seeds])
        torch.manual_seed(seeds[0])
        # What the engine samples itself is scored without filters, so it is drawn without them.
        self._model.generate(
            **inputs,
            **kwargs,
            max_new_tokens=limit,
            do_sample=True,
            temperature=self._how.temperature,
            top_k=0,
            top_p=1.0,
        )
        return traces(kwargs)


class VLLM:
    """vLLM offline; weights go through a folder, so its workers may be elsewhere."""

    def __init__(self, folder: Path, how: Decoding, **engine: Any) -> None:
        from vllm import LLM

        settings = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, **engine}
        self._folder, self._how = folder, how
        self._llm = LLM(
            str(folder),
            logits_processors=["tokenlens.vllm:TokenLens"],
            disable_log_stats=False,
            **settings,
        )

    @property
    def preemptions(self) -> int:
        """Requests that were put off in the middle, since the engine started."""
        found = [m for m in self._llm.get_metrics() if m.name == "vllm:num_preemptions"]
        return int(sum(m.value for m in found))

    def load(self, model: Any) -> None:
        """Take the policy's weights; what is cached of the old ones is dropped."""
        model.save_pretrained(self._folder)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._folder)})
        self._llm.reset_prefix_cache()

    def roll_out(self, prompts: Prompts, seeds: Sequence[int], limit: int) -> list[Trace]:
        """One answer a prompt, each with its own seed."""
        from vllm import SamplingParams

        from tokenlens.vllm import extra_args, trace

        params = [
            SamplingParams(
                temperature=self._how.temperature,
                max_tokens=limit,
                seed=seed,
                extra_args=extra_args(self._how.spec(seed)),
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = [trace(output) for output in self._llm.generate(inputs, params, use_tqdm=False)]
        if any(one is None for one in found):
            raise RuntimeError("an answer came without its trace; full traces must be allowed")
        return found
