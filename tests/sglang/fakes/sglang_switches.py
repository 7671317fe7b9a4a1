"""What the tests switch off in tokenlens, request by request, to see that it matters.

Loaded in the scheduler's process by ``sitecustomize``; a request names its switches in
``custom_params["switches"]``, which the engine itself does not know. At every step of every engine,
what did not ask is compared bit by bit with what SGLang had; the scheduler ends if it differs.
"""

import json
import os
from pathlib import Path

import torch

SWITCHES = ("no_replay", "no_guard", "no_limit")


def install(runtime):
    """Patch the module of what follows requests."""
    from tokenlens.serving.batch import Batch
    from tokenlens.sglang import output, scheduler

    off = {name: set() for name in SWITCHES}
    admit = runtime.RequestFollower._admit

    def _admit(self, req):
        for name in (req.sampling_params.custom_params or {}).get("switches", ()):
            off[name].add(req.rid)
        admit(self, req)

    runtime.RequestFollower._admit = _admit
    batch = Batch
    point = batch._find_pointers

    def _find_pointers(self, computed, scheduled):
        rids = [rid for rid in off["no_replay"] if rid in self.live]
        without = [self.live[rid].slot for rid in rids]
        again = [slot for slot in self._slots[scheduled > 1].tolist() if slot in without]
        before = self._kept[again].copy()
        self._kept[again] = False
        point(self, computed, scheduled)
        self._kept[again] = before

    batch._find_pointers = _find_pointers
    consume = output.StepOutput.consume

    def _consume(self, scheduled, commits):
        consume(self, scheduled, commits)
        for req in scheduled.reqs:
            if req.rid in off["no_guard"]:
                req.skip_radix_cache_insert = False

    output.StepOutput.consume = _consume
    finished, limited = scheduler.update_finish_state, scheduler.compute_max_prefix_len

    def update_finish_state(original, self, *args, **kwargs):
        if self.rid in off["no_guard"]:
            return original(self, *args, **kwargs)
        return finished(original, self, *args, **kwargs)

    def compute_max_prefix_len(original, self, *args, **kwargs):
        if self.rid in off["no_limit"]:
            return original(self, *args, **kwargs)
        return limited(original, self, *args, **kwargs)

    scheduler.update_finish_state = update_finish_state
    scheduler.compute_max_prefix_len = compute_max_prefix_len


class Untouched:
    """Rows and tokens that were compared, written to a file for the test."""

    rows = tokens = 0

    @classmethod
    def write(cls):
        path = os.environ.get("TOKENLENS_TEST_UNTOUCHED")
        if path:
            # Of two ranks, and read at any time: there is always a whole file.
            part = Path(f"{path}.{os.getpid()}")
            part.write_text(json.dumps({"rows": cls.rows, "tokens": cls.tokens}))
            part.replace(path)


def watch(runtime):
    """Compare logits and embeddings of what did not ask with what was there before."""
    from tokenlens.sglang import embedding

    decide = runtime.RequestFollower.decide

    def _decide(self, logits, sampling):
        before = logits.clone()
        decided = decide(self, logits, sampling)
        live = self.batch.live
        if live:
            plain = [row for row, rid in enumerate(self.batch._rows) if rid not in live]
            if not torch.equal(decided[plain], before[plain]):
                raise AssertionError("logits of a request without a spec were changed")
            Untouched.rows += len(plain)
            Untouched.write()
        return decided

    runtime.RequestFollower.decide = _decide
    mixed = embedding._mixed

    def compared(module, input_, stock, rows):
        plain = module.tokenlens_pointers[: input_.numel()] < 0
        if not torch.equal(rows[plain], stock[plain]):
            raise AssertionError("an embedding without a mixture was changed")
        if not plain.all():
            Untouched.tokens += int(plain.sum())
        return rows

    def _mixed(base):
        class Watched(mixed(base)):
            def _embed_local_shard(self, input_):
                stock = base._embed_local_shard(self, input_).clone()
                return compared(self, input_, stock, super()._embed_local_shard(input_))

        class WatchedWhole(mixed(base)):
            def forward(self, input_):
                stock = torch.nn.functional.embedding(input_, self.weight) * self.embed_scale
                return compared(self, input_, stock, super().forward(input_))

        return WatchedWhole if issubclass(base, torch.nn.Embedding) else Watched

    embedding._mixed = _mixed


def plant():
    """Exceptions by a spec's seed: 1013 is not admitted, 1014 is not decided."""
    from tokenlens.core import Core
    from tokenlens.core.columns import SEED
    from tokenlens.methods.top1.step import Top1Method

    add, gate = Core.add, Top1Method.gate

    def planted_add(core, slot, request, *args, **kwargs):
        if request.spec.seed == 1013:
            raise RuntimeError("planted: not admitted")
        add(core, slot, request, *args, **kwargs)

    def planted_gate(method, rows, signals, proposal):
        if bool((rows[method.on] & (rows[SEED] == 1014)).any()):
            raise RuntimeError("planted: not decided")
        gate(method, rows, signals, proposal)

    Core.add, Top1Method.gate = planted_add, planted_gate


def install_now():
    """Once the module with the targets has been imported, before they are wrapped."""
    from tokenlens.sglang import runtime

    install(runtime)
    watch(runtime)
    plant()
