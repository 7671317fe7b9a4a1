"""What one model runner has of tokenlens: made once the model is loaded."""

import logging
from typing import Any

import torch

from tokenlens.core import Core
from tokenlens.methods import METHODS
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.refusals import allows_latent
from tokenlens.serving.report import StepReport, report_of
from tokenlens.serving.store import ConceptStore
from tokenlens.vllm.binding import Binder
from tokenlens.vllm.embedding import InputEmbedding
from tokenlens.vllm.refusals import check_engine
from tokenlens.vllm.traces import ATTRIBUTE, FAILED

logger = logging.getLogger("vllm.tokenlens")

SPARE_SLOTS = 8
"""Slots beside ``max_num_seqs``: a preempted request keeps its slot while there are some."""


class Room:
    """Core, store and embedding of one runner, and the requests that are in it.

    Parameters
    ----------
    runner
        A model runner whose model is loaded.
    """

    def __init__(self, runner: Any) -> None:
        config = runner.vllm_config
        settings = check_engine(config)
        device = torch.device(runner.device)
        scheduler = config.scheduler_config
        self.settings = settings
        self.bind = Binder(config.model_config, load_tokenizer(config.model_config))
        slots = scheduler.max_num_seqs + SPARE_SLOTS
        core = Core(
            methods=METHODS,
            max_slots=slots,
            vocab_size=self.bind.vocab_size,
            holes=self.bind.holes,
            device=device,
            rewind_steps=REWIND_STEPS,
        )
        latent = allows_latent(settings)
        store = ConceptStore(
            slots,
            settings.width(self.bind.vocab_size),
            int(settings.history_mib * 2**20) if latent else 1,
            config.model_config.max_model_len,
            device,
        )
        embedding = None
        if latent:
            embedding = InputEmbedding(runner.model, store, runner.max_num_tokens)
        self.batch = Batch(core, store, embedding)
        self._report: StepReport | None = None
        logger.info(
            "tokenlens: %d slots; history: %s; methods: %s",
            slots,
            store.describe() if latent else "none, no latent method is allowed",
            "all" if settings.allow is None else ", ".join(settings.allow),
        )

    def admit(self, data: Any, prompt: list[int] | None) -> None:
        """A new request of the scheduler's, if it has a spec."""
        try:
            params = data.sampling_params
            request = None if params is None else self.bind(params)
            if request is not None and request.methods:
                assert prompt is not None
                self.batch.admit(data.req_id, request, prompt, len(prompt))
        except Exception:
            self.batch.fail(data.req_id)

    def commit(self, sampled: torch.Tensor) -> None:
        """Take a step's tokens; its report waits for :meth:`attach`."""
        rows = self.batch.advanced()
        step = self.batch.commit(sampled)
        self._report = report_of(self.batch, step, rows, self.settings.max_trace_steps)

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


def _mark(output: Any, report: StepReport | None, failed: dict[str, str]) -> Any:
    if report is not None:
        setattr(output, ATTRIBUTE, report.result(failed))
    if failed:
        setattr(output, FAILED, sorted(failed))
    return output


def load_tokenizer(model_config: Any) -> Any:
    """The model's tokenizer, ``None`` where vLLM is told to do without."""
    if model_config.skip_tokenizer_init:
        return None
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)
