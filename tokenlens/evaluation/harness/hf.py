"""lm-eval's Hugging Face model with a spec."""

from typing import Any

from lm_eval.models.huggingface import HFLM

from tokenlens import assets
from tokenlens.evaluation.harness.specs import Repeats, read, refuse_scoring, refuse_several


class TokenlensHF(HFLM):  # type: ignore[misc]
    """lm-eval's ``hf`` with a spec."""

    def __init__(self, pretrained: str, spec: str = "", **kwargs: Any) -> None:
        self.decoding_spec, self._repeats = read(spec), Repeats()
        super().__init__(assets.path_of(pretrained), **kwargs)

    def _model_generate(self, context: Any, max_length: int, stop: Any, **kwargs: Any) -> Any:
        from tokenlens.hf import generate_kwargs

        refuse_several(max(kwargs.pop("n", 1), kwargs.get("num_return_sequences") or 1))
        mask = kwargs.get("attention_mask")
        rows = context.tolist()
        if mask is not None:
            kept = mask.tolist()
            rows = [[t for t, seen in zip(row, one) if seen] for row, one in zip(rows, kept)]
        specs = [self._repeats.spec(self.decoding_spec, row) for row in rows]
        # lm-eval gives generate() stopping criteria of its own; the processor needs none.
        ours = generate_kwargs(self.model, self.tokenizer, specs)["logits_processor"]
        return super()._model_generate(context, max_length, stop, logits_processor=ours, **kwargs)

    def generate_until(self, *args: Any, **kwargs: Any) -> Any:
        self._repeats = Repeats()
        return super().generate_until(*args, **kwargs)

    def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> Any:
        refuse_scoring(self.decoding_spec)
        return super()._loglikelihood_tokens(*args, **kwargs)
