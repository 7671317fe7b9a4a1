"""tokenlens beside one of vLLM's model runners: made once the model is loaded."""

import logging
from typing import Any

import torch

from tokenlens.serving.drafts import DraftedBatch
from tokenlens.serving.report import PendingReport
from tokenlens.serving.runtime import EngineRuntime, RunnerFacts
from tokenlens.vllm.binding import binder_of, shape_of
from tokenlens.vllm.drafts import drafts_of
from tokenlens.vllm.embedding import layout
from tokenlens.vllm.refusals import asked_for, check_engine
from tokenlens.vllm.traces import ATTRIBUTE, FAILED

RUNTIME = "_tokenlens"
"""Attribute of runners whose engine names our class: their :class:`RunnerRuntime`."""


class RunnerRuntime:
    """A runner's :class:`EngineRuntime`, and what of a step waits to be handed on.

    Parameters
    ----------
    runner
        A model runner whose model is loaded.
    """

    def __init__(self, runner: Any) -> None:
        config = runner.vllm_config
        settings = check_engine(config)
        facts = RunnerFacts(
            engine="vLLM",
            settings=settings,
            binder=binder_of(config.model_config, load_tokenizer(config.model_config)),
            model=runner.model,
            layout=layout(),
            device=torch.device(runner.device),
            max_requests=config.scheduler_config.max_num_seqs,
            max_request_tokens=config.model_config.max_model_len,
            max_pass_tokens=runner.max_num_tokens,
            logger=logging.getLogger("vllm.tokenlens"),
            shape=shape_of(config.model_config),
            dtype=config.model_config.dtype,
            leaves_sums=leaves_sums,
            drafts=drafts_of(config),
        )
        self.engine = EngineRuntime(facts)
        self.batch = self.engine.batch
        # The same, if the engine drafts
        self.drafted = self.batch if isinstance(self.batch, DraftedBatch) else None
        self._report: PendingReport | None = None

    def admit(self, data: Any) -> None:
        """Admit a new request of the scheduler's; one that cannot be is ended, and no other."""
        try:
            if data.sampling_params is not None:
                self.engine.admit(
                    data.req_id,
                    data.sampling_params,
                    data.prompt_token_ids,
                    data.sampling_params.max_tokens,
                )
        except Exception:
            self.batch.fail(data.req_id)

    def decide(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """The logits that the second runner's sampler goes on with, edited where they lie."""
        if self.drafted is not None:
            return self.drafted.decide_rows(logits, ctx.input_ids, ctx.pos)
        return self.batch.decide(logits, in_place=True)

    def commit(self, sampled: torch.Tensor, num_sampled: torch.Tensor | None = None) -> None:
        """Take a step's tokens; its report waits for :meth:`attach`.

        Parameters
        ----------
        sampled
            ``[num_rows]``; beside drafts ``[num_rows, offsets]``.
        num_sampled
            ``[num_rows]``, beside drafts: how many of them count.
        """
        if num_sampled is None:
            self._report = self.engine.commit(sampled)
        else:
            self._report = self.engine.commit_rows(sampled, num_sampled)

    def attach(self, output: Any) -> Any:
        """Put the step's report on the output that the runner returns."""
        report, self._report = self._report, None
        failed = self.batch.take_failed()
        if report is None and not failed:
            return output
        if not hasattr(output, "get_output"):
            return _mark(output, report, failed)
        get_output = output.get_output
        output.get_output = lambda: _mark(get_output(), report, failed)
        return output


def leaves_sums(model: Any) -> bool:
    """Whether vLLM itself takes a layer's hidden state plus its residual for what it leaves."""
    return any(hasattr(one, "_maybe_add_hidden_state") for one in model.modules())


def _mark(output: Any, report: PendingReport | None, failed: dict[str, str]) -> Any:
    if report is not None:
        setattr(output, ATTRIBUTE, report.result(failed))
    if failed:
        setattr(output, FAILED, failed)
    return output


def runtime_of(runner: Any) -> RunnerRuntime | None:
    """The runner's runtime, ``None`` if its engine did not name our class."""
    found = vars(runner).get(RUNTIME)
    return found if isinstance(found, RunnerRuntime) else None


def make_runtime(runner: Any) -> RunnerRuntime | None:
    """Give a runner its runtime, once; ``None`` if it has one, or its engine did not ask."""
    if not asked_for(runner.vllm_config) or runtime_of(runner) is not None:
        return None
    runtime = RunnerRuntime(runner)
    setattr(runner, RUNTIME, runtime)
    return runtime


def load_tokenizer(model_config: Any) -> Any:
    """The model's tokenizer, ``None`` where vLLM is told to do without."""
    if model_config.skip_tokenizer_init:
        return None
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
