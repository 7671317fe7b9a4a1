"""Decoding reads nothing back to the host, and its number of ops does not grow with the batch."""

import sys
from pathlib import Path

import pytest
import torch
from built_in import Core, bind
from core_solo import EOS, MARKERS, START, Letters
from torch.utils._python_dispatch import TorchDispatchMode

import tokenlens
from tokenlens import DecodingSpec
from tokenlens.spec import parse_spec

VOCAB = 40
SOFT = {
    "method": "soft_thinking",
    "top_k": 8,
    "max_entries": 8,
    "cold_stop": {"entropy_threshold": 1.0, "patience": 2},
}
SPECS = [
    [SOFT, {"method": "gumbel_noise"}],
    [SOFT, {"method": "dirichlet_noise"}, {"method": "top1"}],
    [{**SOFT, "profile": "published"}, {"method": "random_route"}],
    [{**SOFT, "eos_while_latent": "forbid"}, {"method": "answer_now", "after": 2, "text": "abc"}],
    [{"method": "no_thinking"}],
    [{"method": "cyclic_reflex", "words": ["a"], "windows": [[0, 3], [4, 9]]}],
    [SOFT, {"method": "tip", "words": ["a"]}, {"method": "nowait", "words": ["c"]}],
    [SOFT, {"method": "edt"}, {"method": "min_p"}, {"method": "top_n_sigma"}, {"method": "top_h"}],
    [{"method": "thinking_budget", "budget": 2, "stop": "step", "step_end": "b", "ramp": 0.5}],
    [SOFT, {"method": "s1", "text": "a", "temperature": 0.5}],
    [
        {
            "method": "alpha_one",
            "average_thinking": 3,
            "text": "a",
            "words": ["a"],
            "step_ends": ["b"],
        }
    ],
    [SOFT, {"method": "static_window", "words": ["b"], "profile": "published"}],
    [{"method": "think_router"}, {"method": "gumbel_noise"}],
    [{"method": "lead"}, {"method": "cyclic_reflex", "words": ["a"]}],
    [
        {
            "method": "swi_reasoning",
            "first": {"tokens": [7], "keep": 0.9},
            "switch_control": {"after": 1, "terminate": "a"},
        }
    ],
    [{"method": "selar"}],
    [{"method": "hapo", "median": 0.1, "std": 0.5, "scale_pos": 1.0, "scale_neg": -1.0}],
    [SOFT, {"method": "soft_grpo_noise"}],
    [{"method": "latent_grpo", "noise": "one_sided"}],
    [{"method": "cot2"}],
    [],
]
PACKAGES = tuple(str(Path(tokenlens.__file__).parent / one) for one in ("core", "methods"))
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
         "aten::is_nonzero", "aten::unique_dim", "aten::_unique2"}  # fmt: skip


class HostReadError(AssertionError):
    pass


def from_our_packages():
    """Whether the op was called by a file of the core or of the methods, not by a kernel."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "tokenlens_kernels" in name and not name.endswith("philox.py"):
            return False
        if name.startswith(PACKAGES):
            return True
        frame = frame.f_back
    return False


class Watch(TorchDispatchMode):
    """Counts ops, and refuses those that wait for the device when our packages call them."""

    def __init__(self):
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # What the CPU kernel does inside its op is its own business.
        if from_our_packages():
            self.ops += 1
            if func._schema.name in READS:
                raise HostReadError(f"{func} reads a device value on the host")
            if func._schema.name.startswith("aten::index") and any(
                isinstance(index, torch.Tensor) and index.dtype == torch.bool
                for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
            ):
                raise HostReadError(f"{func} with a mask waits for the device")
        return func(*args, **(kwargs or {}))


def full_core(num_rows):
    core = Core(max_slots=num_rows, vocab_size=VOCAB)
    for slot in range(num_rows):
        methods = SPECS[slot % len(SPECS)] if num_rows > 1 else SPECS[0]
        level = "full" if slot % 2 else "summary"
        fields = {"phase": MARKERS.model_dump(), "seed": slot, "trace": {"level": level}}
        spec = parse_spec({"methods": methods, **fields})
        request = bind(
            spec,
            tokenizer=Letters("_ .<>abcdefgh".ljust(VOCAB, "?")),
            vocab_size=VOCAB,
            eos_ids=[EOS],
        )
        core.add(slot, request, [START])
    return core


def decode(core, num_rows, steps=6):
    generator = torch.Generator().manual_seed(0)
    slots = torch.randperm(num_rows, generator=generator)
    advance = torch.rand(num_rows, generator=generator) > 0.2
    rows = [torch.randn(num_rows, VOCAB + 3, generator=generator) * 4 for _ in range(steps)]
    counts = []
    for logits in rows:
        sampled = torch.full((num_rows,), 9)
        with Watch() as watch:
            core.step(logits, slots)
            core.commit(sampled, slots, advance)
        counts.append(watch.ops)
    return counts


@pytest.mark.parametrize("num_rows", [1, len(SPECS)])
def test_no_host_read_on_the_decode_path(num_rows):
    counts = decode(full_core(num_rows), num_rows)
    assert min(counts) > 50, "the watch saw nothing"


def guard(monkeypatch, name):
    original = getattr(torch.Tensor, name)

    def guarded(self, *args, **kwargs):
        if from_our_packages():
            raise HostReadError(name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, name, guarded)


PYTHON_READS = ["item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"]


@pytest.mark.parametrize("name", PYTHON_READS)
def test_no_python_read_on_the_decode_path(name, monkeypatch):
    # Beneath the dispatcher, .cpu() of a CPU tensor is nothing at all: so it is caught here.
    core = full_core(len(SPECS))
    guard(monkeypatch, name)
    decode(core, len(SPECS), steps=3)


READERS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "float": lambda x: float(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_planted_host_read_is_found(reader, monkeypatch):
    from tokenlens.methods.top1 import step as top1

    core = full_core(len(SPECS))
    code = compile("def gate(self, rows, signals, proposal):\n    read(proposal.weights[:, 0])\n",
                   top1.__file__, "exec")  # fmt: skip
    namespace = {"read": READERS[reader]}
    exec(code, namespace)
    # A function whose file is one of the methods', as a careless method would be.
    monkeypatch.setattr(top1.Top1Method, "gate", namespace["gate"])
    for name in PYTHON_READS:
        guard(monkeypatch, name)
    with pytest.raises(HostReadError):
        decode(core, len(SPECS))


def test_the_number_of_ops_does_not_depend_on_the_batch():
    # The same methods live in each: more rows of them must cost no more ops.
    counts = {}
    for copies in (1, 11):
        num_rows = copies * len(SPECS)
        counts[copies] = decode(full_core(num_rows), num_rows)
    assert counts[1] == counts[11]


def test_the_number_of_ops_of_one_row_and_of_64():
    def core_of(num_rows):
        spec = DecodingSpec(methods=tuple(parse_spec({"methods": SPECS[0]}).methods), phase=MARKERS)
        request = bind(spec, tokenizer=None, vocab_size=VOCAB, eos_ids=[EOS])
        core = Core(max_slots=num_rows, vocab_size=VOCAB)
        for slot in range(num_rows):
            core.add(slot, request, [START])
        return core

    assert decode(core_of(1), 1) == decode(core_of(64), 64)


def test_a_loop_over_rows_would_be_counted(monkeypatch):
    from tokenlens.methods.top1 import step as top1

    code = compile(
        "def gate(self, rows, signals, proposal):\n"
        "    for row in range(len(signals.valid)):\n        signals.valid[row] | True\n",
        top1.__file__, "exec",
    )  # fmt: skip
    namespace = {}
    exec(code, namespace)
    monkeypatch.setattr(top1.Top1Method, "gate", namespace["gate"])
    few, many = len(SPECS), 5 * len(SPECS)
    assert decode(full_core(few), few) != decode(full_core(many), many)
