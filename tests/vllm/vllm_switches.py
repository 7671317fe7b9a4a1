"""What the tests turn on and off in stock vLLM and in tokenlens, to see that it matters."""

import contextlib
import os
from types import SimpleNamespace


class FinalizeDrafts:
    """What the interpreter cannot run of vLLM's n-gram drafts: the same in PyTorch."""

    def __getitem__(self, grid):
        return self._run

    @staticmethod
    def _run(
        tokens, _, rows, lengths, num_sampled, last, scratch, __, drafts, longest, *sizes, **___
    ):
        import torch

        count = len(num_sampled)
        rows = rows[:count]
        score = scratch[:count].amax(dim=1)
        found = (score > 0) & (num_sampled > 0)
        # A score is the length of a match, and where it is.
        length = (score - 1) // (longest + 1)
        start = length + (score - 1) % (longest + 1)
        place = start[:, None] + torch.arange(drafts.shape[1])
        known = found[:, None] & (place < lengths[rows][:, None])
        taken = tokens[rows[:, None], place.clamp(0, longest - 1)].long()
        drafts[:count] = torch.where(known, taken, last[rows][:, None].long())


class Switches:
    """Switches, set anew for every engine of a process."""

    def __init__(self):
        self.values = {}
        self.preemptions = 0
        self.preempted = []
        self.drafts = [0, 0]
        self.runtime = None
        self._patch()

    def set(self, values):
        """Names of switches with their values; what is not named is off."""
        self.values = values
        self.preemptions = 0
        self.preempted = []
        self.drafts = [0, 0]
        self.runtime = None
        other = os.environ.get("TOKENLENS_TESTS_ON_ANY_VERSION", "0")
        os.environ["TOKENLENS_ANY_VLLM"] = "1" if values.get("any_version") else other

    @contextlib.contextmanager
    def stranger(self, is_one):
        """A front end that does not know tokenlens, as vLLM's in Rust: no hook, no admission."""
        from vllm.v1.engine.input_processor import InputProcessor

        ours = InputProcessor.process_inputs
        if is_one:
            InputProcessor.process_inputs = ours.__wrapped__
        try:
            yield
        finally:
            InputProcessor.process_inputs = ours

    def _thinks(self, req_id):
        live = None if self.runtime is None else self.runtime.batch.live.get(req_id)
        if live is None or not live.latent or live.slot < 0:
            return False
        from tokenlens.core.columns import PHASE, Phase

        return int(self.runtime.batch.core.table.column(PHASE)[live.slot]) == Phase.THINKING

    def _plant(self):
        """Exceptions by a request's seed (13: not admitted, 14: not decided), and a bad number."""
        from tokenlens.core import Core
        from tokenlens.core.columns import SEED
        from tokenlens.methods._shared.rollout_noise import TAU
        from tokenlens.methods.soft_grpo_noise.step import SoftGrpoNoiseMethod
        from tokenlens.methods.top1.step import Top1Method

        add, gate, admit = Core.add, Top1Method.gate, SoftGrpoNoiseMethod.admit

        def planted_add(core, slot, request, *args, **kwargs):
            if self.values.get("faults") and request.spec.seed == 13:
                raise RuntimeError("planted: not admitted")
            add(core, slot, request, *args, **kwargs)

        def planted_gate(method, rows, signals, proposal):
            if self.values.get("faults") and bool((rows[method.on] & (rows[SEED] == 14)).any()):
                raise RuntimeError("planted: not decided")
            gate(method, rows, signals, proposal)

        def unbounded(method, config, admission):
            found = dict(admit(method, config, admission))
            if self.values.get("no_bounds"):
                found[TAU] = 1e-50
            return found

        Core.add, Top1Method.gate = planted_add, planted_gate
        SoftGrpoNoiseMethod.admit = unbounded

    def _patch(self):
        import torch
        from vllm.platforms.cpu import CpuPlatform
        from vllm.v1.core.sched.scheduler import Scheduler

        from tokenlens import versions
        from tokenlens.core import Core
        from tokenlens.serving.batch import Batch
        from tokenlens.serving.drafts import DraftedBatch
        from tokenlens.vllm import engine

        check = CpuPlatform.check_and_update_config.__func__

        def check_and_update_config(cls, config):
            check(cls, config)
            if self.values.get("async"):
                # The CPU platform switches it off; the schedulers and both runners can do it.
                config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = classmethod(check_and_update_config)

        preempt = Scheduler._preempt_request

        def _preempt_request(scheduler, request, *args, **kwargs):
            # Those that think in mixtures count, while they do.
            self.preemptions += self._thinks(request.request_id)
            self.preempted.append(request.request_id)
            return preempt(scheduler, request, *args, **kwargs)

        Scheduler._preempt_request = _preempt_request

        point = Batch._find_pointers

        def _find_pointers(batch, computed, scheduled):
            if self.values.get("no_replay"):
                again = batch._slots[scheduled > 1]
                before = batch._kept[again].copy()
                batch._kept[again] = False
                point(batch, computed, scheduled)
                batch._kept[again] = before
            else:
                point(batch, computed, scheduled)

        Batch._find_pointers = _find_pointers

        rewind = Core.rewind_rows
        Core.rewind_rows = lambda core, *args: (
            None if self.values.get("no_rewind") else rewind(core, *args)
        )

        commit = DraftedBatch.commit_rows

        def commit_rows(batch, sampled, num_sampled):
            accepted = int((num_sampled.clamp(min=1) - 1).sum())
            self.drafts[0] += accepted
            self.drafts[1] += int(batch._num_drafts.sum()) - accepted
            return commit(batch, sampled, num_sampled)

        DraftedBatch.commit_rows = commit_rows

        hold = engine.hold_drafts
        engine.hold_drafts = lambda request: None if self.values.get("no_hold") else hold(request)

        salt = engine._salt
        engine._salt = lambda request: None if self.values.get("no_salt") else salt(request)

        self._plant()

        installed = versions.installed
        versions.installed = lambda name: self.values.get("version") or installed(name)

        if os.environ.get("TRITON_INTERPRET") == "1":
            from vllm.v1.sample.ops import topk_topp_sampler

            # The interpreter cannot run this kernel of vLLM's; its PyTorch twin does the same.
            twin = topk_topp_sampler.apply_top_k_top_p_pytorch
            triton = "apply_top_k_top_p_triton"
            setattr(topk_topp_sampler, triton, lambda logits, k, p, **_: twin(logits, k, p))
            from vllm.v1.worker.gpu.spec_decode.ngram import speculator

            speculator._ngram_finalize_kernel = FinalizeDrafts()

        if not torch.cuda.is_available():
            # Asynchronous scheduling asks for streams and events; on a CPU they are nothing.
            stream = SimpleNamespace(wait_stream=lambda *_: None, synchronize=lambda: None)
            torch.cuda.Stream = lambda *_, **__: stream
            torch.cuda.current_stream = lambda *_: stream
            torch.cuda.stream = lambda *_: contextlib.nullcontext()
            torch.cuda.Event = lambda *_, **__: SimpleNamespace(
                record=lambda *_: None, synchronize=lambda: None, query=lambda: True
            )
