"""Hugging Face ``generate()`` for evaluations: big batches, left padding, one spec a row."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tokenlens import assets
from tokenlens.controllers.spec import ControllerSpec
from tokenlens.evaluation.arms import ArmSampling
from tokenlens.evaluation.engine import EngineName, counted, opened, phase_of
from tokenlens.evaluation.records import Generated
from tokenlens.evaluation.steering import steered
from tokenlens.hf import generate_kwargs, traces
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.vocabulary import RouterVocabulary
from tokenlens.spec import DecodingSpec, PhaseConfig
from tokenlens.trace.finish import finish


class HuggingFace:
    """A model of transformers, on the device there is: bfloat16 on a GPU, else float32."""

    name: EngineName = "hf"

    def __init__(self, model: str, *, dtype: str = "") -> None:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        path = assets.path_of(model)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = dtype or ("bfloat16" if device == "cuda" else "float32")
        network: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, chosen))
        self.model = network.eval().to(device)

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
        tokenizer = self.tokenizer
        texts = list(prompts)
        if tokenizer.chat_template:
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                for prompt in prompts
            ]
        inputs = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            add_special_tokens=not tokenizer.chat_template,
        )
        inputs.pop("token_type_ids", None)
        kwargs = generate_kwargs(self.model, tokenizer, [counted(spec) for spec in specs])
        torch.manual_seed(seed)
        output = self.model.generate(
            **inputs.to(self.model.device),
            **kwargs,
            **_settings(sampling),
            max_new_tokens=max_new_tokens,
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        found = []
        for row, (ids, trace) in enumerate(zip(new, traces(kwargs))):
            assert trace is not None
            counts = trace.counts
            ids = ids[: counts.tokens]
            found.append(
                Generated(
                    text=tokenizer.decode(ids),
                    tokens=counts.tokens,
                    thinking_tokens=counts.thinking_tokens,
                    latent_steps=counts.latent_steps,
                    forced_steps=counts.forced_steps,
                    cold_stops=counts.cold_stops,
                    finished=bool(ids) and ids[-1] in self._eos_ids(),
                    opened=opened(tokenizer, prompts[row], texts[row], self.phase(specs[row])),
                    finish=finish(trace),
                )
            )
        return found

    def steered(
        self,
        prompts: Sequence[str],
        steer: ControllerSpec,
        sampling: ArmSampling,
        *,
        max_new_tokens: int,
        seeds: Sequence[int],
    ) -> list[Generated]:
        """See :func:`tokenlens.evaluation.steering.steered`."""
        words = RouterVocabulary(self.tokenizer, tuple(self._eos_ids()))
        backend = HFBackend(self.model, words)
        return steered(
            backend, words, prompts, steer, sampling, max_new_tokens=max_new_tokens, seeds=seeds
        )

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return str(self.tokenizer.decode(list(ids)))

    def phase(self, spec: DecodingSpec) -> PhaseConfig:
        """See :class:`tokenlens.evaluation.engines.Engine`."""
        return phase_of(self.tokenizer, spec)

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _eos_ids(self) -> list[int]:
        eos = self.model.generation_config.eos_token_id
        return eos if isinstance(eos, list) else [eos]


def _settings(sampling: ArmSampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        # A model's generation config may bring sampling settings of its own.
        return {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
