"""tokenlens beside SGLang's model runner: made before graphs are captured.

Follows SGLang's requests into the batch and out of it. Everything here runs on the scheduler's
thread, what touches the device on the stream of the forward pass.
"""

import logging
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenlens.core.forcing import FORCED_LOGIT
from tokenlens.errors import SpecError
from tokenlens.serving.batch import Ints
from tokenlens.serving.refusals import is_own
from tokenlens.serving.runtime import EngineRuntime, RunnerFacts
from tokenlens.serving.settings import Settings
from tokenlens.sglang import refusals
from tokenlens.sglang.binding import binder_of, shape_of
from tokenlens.sglang.embedding import layout
from tokenlens.sglang.layers import check_layers, completed, leaves_sums
from tokenlens.sglang.output import LATENT, StepOutput, abort

NOTHING: Ints = np.zeros(0, dtype=np.int64)


@dataclass
class Known:
    """A request of SGLang's that has a spec, and how often it was retracted when last seen."""

    req: "weakref.ref[Any]"
    retractions: int
    away: bool = False


class RequestFollower:
    """Follows SGLang's requests into the batch of an :class:`EngineRuntime` and out of it.

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
        settings.read_files()
        requests = int(runner.req_to_token_pool.size)
        context = int(runner.model_config.context_len)
        most = max(context, args.chunked_prefill_size or 0, args.max_prefill_tokens or 0)
        facts = RunnerFacts(
            engine="SGLang",
            settings=settings,
            binder=binder_of(runner.model_config, load_tokenizer(args)),
            model=runner.model,
            # The pool's first row is nobody's.
            layout=layout(requests + 1),
            device=torch.device(runner.device),
            max_requests=requests,
            max_request_tokens=context,
            max_pass_tokens=most + requests,
            logger=logging.getLogger("sglang.tokenlens"),
            shape=shape_of(runner.model_config),
            dtype=runner.model_config.dtype,
            completed=completed,
            check_layers=partial(check_layers, num_ranks=int(args.tp_size)),
            leaves_sums=leaves_sums,
        )
        self.engine = EngineRuntime(facts)
        self.batch = self.engine.batch
        self._known: dict[str, Known] = {}
        # Of the step that is open: the logits that came, where log-probabilities are asked for.
        self._wants_logprobs = False
        self._stock: tuple[Tensor, Any] | None = None
        self._forced: Tensor | None = None

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
        try:
            # As the client's prompt was read: `origin_input_ids` has hashes in an image's place.
            prompt, params = req.origin_input_ids_unpadded, req.sampling_params
            request = self.engine.admit(req.rid, params, prompt, params.max_new_tokens)
            if request is None:
                return
            setattr(req, LATENT, is_own(request.spec))
        except SpecError as error:
            # The front end has checked it: another tokenizer or another front end.
            abort(req, str(error))
            return
        except Exception:
            self.batch.fail(req.rid)
            # Ended here: nobody else has to.
            reason = self.batch.failed[req.rid]
            self.batch.finish([req.rid])
            abort(req, f"tokenlens: {reason}.")
            return
        self._known[req.rid] = Known(weakref.ref(req), req.retraction_count)

    def decide(self, logits: Tensor, sampling: Any) -> Tensor:
        """The logits that SGLang samples from."""
        decided = self.batch.decide(logits, in_place=not self._wants_logprobs)
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
        report = self.engine.commit(sampled)
        failed = self.batch.take_failed()
        if report is None and not failed:
            return None
        return StepOutput(report, failed)


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
