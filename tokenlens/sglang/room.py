"""What one model runner has of tokenlens: made before graphs are captured.

Follows SGLang's requests into the batch and out of it. Everything here runs on the scheduler's
thread, what touches the device on the stream of the forward pass.
"""

import logging
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenlens.core import Core
from tokenlens.core.forcing import FORCED_LOGIT
from tokenlens.errors import SpecError
from tokenlens.methods import METHODS
from tokenlens.serving.batch import REWIND_STEPS, Batch, Ints
from tokenlens.serving.faults import BROKEN
from tokenlens.serving.refusals import allows_latent, is_latent
from tokenlens.serving.report import report_of
from tokenlens.serving.settings import Settings
from tokenlens.serving.store import ConceptStore
from tokenlens.sglang import refusals
from tokenlens.sglang.binding import Binder
from tokenlens.sglang.embedding import InputEmbedding
from tokenlens.sglang.output import StepOutput

logger = logging.getLogger("sglang.tokenlens")

SPARE_SLOTS = 8
"""Slots beside the running requests: a retracted one keeps its slot while there are some."""

LATENT = "_tokenlens_latent"
"""Attribute of SGLang's requests that may be fed mixtures."""

NOTHING: Ints = np.zeros(0, dtype=np.int64)


@dataclass
class Known:
    """A request of SGLang's that has a spec, and how often it was retracted when last seen."""

    req: "weakref.ref[Any]"
    retractions: int
    away: bool = False


class Room:
    """Core, store and embedding of one runner, and the requests that are in it.

    Parameters
    ----------
    runner
        A model runner whose model is loaded and whose pools are allocated.
    args
        SGLang's server arguments, resolved.
    """

    def __init__(self, runner: Any, args: Any, settings: Settings) -> None:
        refusals.check_engine(args)
        refusals.check_model(runner.model_config, settings)
        self.settings = settings
        self.bind = Binder(runner.model_config, load_tokenizer(args))
        device = torch.device(runner.device)
        requests = int(runner.req_to_token_pool.size)
        slots = requests + SPARE_SLOTS
        context = int(runner.model_config.context_len)
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
            context,
            device,
        )
        embedding = None
        if latent:
            most = max(context, args.chunked_prefill_size or 0, args.max_prefill_tokens or 0)
            embedding = InputEmbedding(runner.model, store, most + requests)
        self.batch = Batch(core, store, embedding)
        self._known: dict[str, Known] = {}
        # Of the step that is open: the logits that came, where log-probabilities are asked for.
        self._wants_logprobs = False
        self._stock: tuple[Tensor, Any] | None = None
        self._forced: Tensor | None = None
        logger.info(
            "tokenlens: %d slots; history: %s; methods: %s",
            slots,
            store.describe() if latent else "none, no latent method is allowed",
            "all" if settings.allow is None else ", ".join(settings.allow),
        )

    def begin(self, batch: Any) -> None:
        """A forward pass is about to be prepared."""
        self._stock = self._forced = None
        extends = batch.forward_mode.is_extend()
        self._follow()
        if extends:
            for req in batch.reqs:
                if req.rid not in self._known:
                    self._admit(req)
        if not self.batch.live:
            self.batch.begin((), NOTHING, NOTHING)
            return
        for req in batch.reqs:
            known = self._known.get(req.rid)
            if known is not None and known.away:
                known.away = False
                self.batch.resume(req.rid, len(req.output_ids))
        if extends:
            computed = np.array(batch.prefix_lens, dtype=np.int64)
            scheduled = np.array(batch.extend_lens, dtype=np.int64)
        else:
            computed = batch.seq_lens_cpu.numpy().astype(np.int64) - 1
            scheduled = np.ones_like(computed)
        self._wants_logprobs = bool(batch.return_logprob)
        self.batch.begin([req.rid for req in batch.reqs], computed, scheduled)

    def rest(self) -> None:
        """There is nothing to run: what has ended gives its slot back now, not with a next step."""
        if self._known:
            self._follow()

    def _follow(self) -> None:
        """Notice requests that ended and requests that lost their KV cache."""
        gone = []
        for rid, known in self._known.items():
            req = known.req()
            if req is None or req.finished():
                gone.append(rid)
            elif req.retraction_count != known.retractions:
                known.retractions, known.away = req.retraction_count, True
                self.batch.preempt(rid)
        for rid in gone:
            del self._known[rid]
        self.batch.finish(gone)

    def _admit(self, req: Any) -> None:
        params = req.sampling_params
        try:
            request = self.bind(params) if params.custom_params else None
            if request is None or not request.methods:
                return
            prompt = list(req.origin_input_ids)
            self.batch.admit(req.rid, request, prompt, len(prompt))
            setattr(req, LATENT, is_latent(request.spec))
        except SpecError as error:
            # The front end has checked it: another tokenizer or another front end.
            abort(req, str(error))
            return
        except Exception:
            self.batch.fail(req.rid)
            # Ended here: nobody else has to.
            self.batch.finish([req.rid])
            abort(req, f"tokenlens: {BROKEN}.")
            return
        self._known[req.rid] = Known(weakref.ref(req), req.retraction_count)

    def decide(self, logits: Tensor, sampling: Any) -> Tensor:
        """The logits that SGLang samples from."""
        decided = self.batch.decide(logits)
        if decided is not logits and self._wants_logprobs:
            self._stock = logits, sampling
            # [num_rows] bool: a forced token stands far above every logit
            most = min(FORCED_LOGIT, torch.finfo(decided.dtype).max / 4)
            self._forced = decided.amax(dim=1) >= most
        return decided

    def logprobs(self, logprobs: Tensor, original: bool) -> Tensor:
        """Log-probabilities in which forced tokens have the model's, not that of being forced."""
        if self._stock is None or self._forced is None:
            return logprobs
        (logits, sampling), forced = self._stock, self._forced
        self._stock = self._forced = None
        logits = logits.float()
        if not (sampling.is_all_greedy or original):
            logits = logits / sampling.temperatures
        return torch.where(forced[:, None], torch.log_softmax(logits, dim=-1), logprobs)

    def commit(self, sampled: Tensor) -> StepOutput | None:
        """Take a step's tokens; returns what the scheduler is told when they arrive there."""
        rows = self.batch.advanced()
        step = self.batch.commit(sampled)
        report = report_of(self.batch, step, rows, self.settings.max_trace_steps)
        failed = self.batch.take_failed()
        if report is None and not failed:
            return None
        return StepOutput(report, failed)


def abort(req: Any, message: str) -> None:
    """End a request of SGLang's as an error; the engine goes on."""
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req.to_finish = FINISH_ABORT(message, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")


def load_tokenizer(args: Any) -> Any:
    """The model's tokenizer, ``None`` where SGLang is told to do without."""
    if args.skip_tokenizer_init:
        return None
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(
        args.tokenizer_path or args.model_path,
        tokenizer_mode=args.tokenizer_mode,
        trust_remote_code=args.trust_remote_code,
        revision=args.revision,
        tokenizer_backend=args.tokenizer_backend,
    )
