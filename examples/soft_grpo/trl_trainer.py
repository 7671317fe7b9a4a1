"""SofT-GRPO in TRL 1.16.0: its rollout hook, and four overrides of private methods.

The hook alone trains in silence on the visible tokens, as if they had been fed.

    pip install trl==1.16.0
    python trl_trainer.py /tmp/soft_grpo_trl
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from engines import HuggingFace
from policy import Decoding, Rows, fed, ratio_error, score
from torch import Tensor
from train import seed_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tokenlens import assets
from tokenlens.evaluation.countdown import check_answer, problems, prompt
from tokenlens.trace import Trace

EXTRA = ("scored", "latent", "recorded", "ids", "weights", "scores")
"""Of :class:`policy.Rows`; TRL shuffles and splits them with the rest, by any name."""


class SoftGRPOTrainer(GRPOTrainer):
    """TRL's loop, advantages and loss over rollouts with concept tokens.

    Old and reference log-probabilities are taken before the rows are there: one update a batch, no
    KL term, no correction for vLLM.
    """

    def __init__(self, *arguments: Any, how: Decoding, args: GRPOConfig, **settings: Any) -> None:
        for name, allowed in (("num_iterations", 1), ("beta", 0.0), ("use_vllm", False)):
            if getattr(args, name) != allowed:
                raise ValueError(f"{name}: got {getattr(args, name)}; allowed: {allowed}")
        self.how = how
        self.off: list[float] = []
        self._traces: list[Trace] = []
        self._micro: dict[str, Tensor] | None = None
        super().__init__(*arguments, args=args, rollout_func=self._roll_out, **settings)

    def _roll_out(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """The hook. Prompts come repeated; each has a seed of its own, and another every step."""
        encoded = self.processing_class.apply_chat_template(
            prompts, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        of = (self.args.seed, self.state.global_step, self.accelerator.process_index)
        seeds = [seed_of(*of, row) for row in range(len(prompts))]
        model = self.accelerator.unwrap_model(self.model)
        engine = HuggingFace(model, self.processing_class, self.how)
        training = model.training
        model.eval()
        self._traces = engine.roll_out(encoded, seeds, self.max_completion_length)
        model.train(training)
        replies = [[step.token for step in trace.steps] for trace in self._traces]
        nothing = [[0.0] * len(reply) for reply in replies]
        return {"prompt_ids": encoded, "completion_ids": replies, "logprobs": nothing}

    def _generate(self, prompts: list[Any]) -> Any:
        self._traces = []
        found = super()._generate(prompts)
        # Whatever TRL does with replies (tools, environments), traces must be of the same tokens.
        for trace, reply in zip(self._traces, found[1], strict=True):
            if [step.token for step in trace.steps] != list(reply):
                raise RuntimeError("a reply is not what its trace says: no tools, no environments")
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # Replies alone, as wide as TRL has padded them.
        width = output["completion_ids"].shape[1]
        rows = Rows.of(self._traces, [[]] * len(self._traces), self.how.entries)
        for name in EXTRA:
            value = getattr(rows, name)
            wide = value.new_full((value.shape[0], width, *value.shape[2:]), -(name == "ids"))
            wide[:, : value.shape[1]] = value
            output[f"soft_{name}"] = wide.to(output["completion_ids"].device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        # It does not hand them on to what follows.
        self._micro = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._micro = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor, None]:
        if self._micro is None:
            raise RuntimeError("log-probabilities are asked for before the rows are there")
        micro = self._micro
        rows = Rows(micro["completion_ids"], **{name: micro[f"soft_{name}"] for name in EXTRA})
        start = input_ids.shape[1] - logits_to_keep
        base = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            before = base.get_input_embeddings()(input_ids[:, :start])
        output = model(
            inputs_embeds=torch.cat([before, fed(base, rows)], 1),
            attention_mask=attention_mask,
            # Prompts are padded on the left.
            position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
        )
        logits = output.logits[:, start - 1 : -1]
        found = score(logits, rows, self.how)
        # One update a batch: the policy is still the one that rolled out.
        self.off.append(ratio_error(found, rows))
        entropies = torch.distributions.Categorical(logits=logits.detach().float()).entropy()
        return found, entropies, None


def example(folder: str, steps: int = 20, **settings: Any) -> SoftGRPOTrainer:
    """A trainer of the tiny reasoner on problems of three numbers."""
    from datasets import Dataset

    path = assets.path_of("tiny-reasoner-latent")
    asked = problems("train", 3)
    by_prompt = {prompt(problem): problem for problem in asked}

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [
            float(check_answer(by_prompt[one[0]["content"]], other[0]["content"]))
            for one, other in pairs
        ]

    values = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
        "max_completion_length": 112, "learning_rate": 5e-4, "beta": 0.0, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "use_cpu": not torch.cuda.is_available(),
        "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    return SoftGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=folder, max_steps=steps, **{**values, **settings}),
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": text}]} for text in by_prompt]
        ),
        how=Decoding(),
    )


if __name__ == "__main__":
    example(sys.argv[1]).train()
