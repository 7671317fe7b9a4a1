"""Times the decode-step kernels beside what they replace. Correctness is asserted before any time.

Stages: ``weights`` (logits to concept weights and statistics), ``bare`` (the weights, whose
statistics nobody reads), ``mixture`` (concept weights to an embedding) and ``step`` (``weights``,
then ``mixture``). Every row holds the 20, 50 and 80 % quantiles of one implementation and of its
ratio to ours, taken round by round: the implementations take turns, so that a busy machine slows
all of them. On a device, each is captured in a graph and replayed with a flushed L2 cache, beside
the floor of an empty kernel and the bandwidth of a copy. Without one, the CPU's table is
made, and the device's figures stay marked as not measured.

    python benchmarks/kernels.py --output benchmarks/results/kernels_cpu.csv
"""

from __future__ import annotations

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import importlib.util
import itertools
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenlens_kernels import TopKSignals, concept_mixture, signals_topk
from tokenlens_kernels.concept_mixture import naive as mixture_naive
from tokenlens_kernels.signals_topk import naive as signals_naive

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TEMPERATURE, TOP_K, TOP_P = 0.6, 30, 0.95
CENTRE = (64, 151936, 2048, 10)
OURS = "tokenlens"
REFERENCE = "reference chain"


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement."""

    batch: int
    vocab: int
    hidden: int
    entries: int


@dataclass(frozen=True)
class Line:
    """A line of the table. Times are microseconds; ``ratio`` is this time over ours."""

    stage: str
    implementation: str
    batch: int
    vocab: int
    hidden: int
    entries: int
    logits: str
    table: str
    rounds: int
    q20_us: float
    q50_us: float
    q80_us: float
    ratio_q20: float
    ratio_q50: float
    ratio_q80: float
    effective_gb_per_s: float
    device: str
    threads: int
    torch: str
    triton: str
    commit: str


def our_arguments(shape: Shape, device: str) -> dict[str, Any]:
    def filled(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((shape.batch,), value, dtype=dtype, device=device)

    width = max(TOP_K, shape.entries)
    return {
        "active": filled(True, torch.bool),
        "inverse_temperature": filled(1 / TEMPERATURE, torch.float32),
        "top_k": filled(TOP_K, torch.int64),
        "top_p": filled(TOP_P, torch.float32),
        "min_p": filled(0.0, torch.float32),
        "max_entries": filled(shape.entries, torch.int64),
        "noise_temperature": filled(0.0, torch.float32),
        "seed": filled(0, torch.int64),
        "position": filled(0, torch.int64),
        "vocab_size": shape.vocab,
        "width": width,
    }


def reference_weights(logits: Tensor, entries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Soft Thinking's sampler as published: whole-vocabulary renormalisations, then top-k.

    The two renormalisation kernels are replaced by the torch definitions of flashinfer's own tests.
    """
    p = torch.softmax(logits / TEMPERATURE, dim=-1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(-1)
    kth = torch.sort(p, dim=-1, descending=True).values[:, TOP_K - 1 : TOP_K]
    p = torch.where(p >= kth, p, 0.0)
    p = p / p.sum(-1, keepdim=True)
    ascending, order = torch.sort(p, dim=-1)
    kept = ascending.cumsum(-1) >= 1 - TOP_P
    p = p * torch.zeros_like(kept).scatter_(-1, order, kept)
    p = p / p.sum(-1, keepdim=True)
    weights, ids = torch.topk(p, entries, dim=-1)
    return weights / weights.sum(-1, keepdim=True), ids, entropy


def lean_weights(logits: Tensor, entries: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same numbers without a sort: what a careful user of torch would write."""
    z = logits / TEMPERATURE
    log_mass = z.logsumexp(-1, keepdim=True)
    log_p = z - log_mass
    entropy = -(log_p.exp() * log_p).sum(-1)
    top, ids = torch.topk(log_p, max(TOP_K, entries), dim=-1)
    p = top.exp()
    p[:, TOP_K:] = 0.0
    p = p / p.sum(-1, keepdim=True)
    p = torch.where(p.cumsum(-1) - p <= TOP_P, p, 0.0)[:, :entries]
    return p / p.sum(-1, keepdim=True), ids[:, :entries], entropy


def bare_weights(logits: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """The weights alone: filters that begin with a top-k need no mass of the vocabulary."""
    top, ids = torch.topk(logits, max(TOP_K, entries), dim=-1)
    top[:, TOP_K:] = -torch.inf
    p = torch.softmax(top / TEMPERATURE, dim=-1)
    p = torch.where(p.cumsum(-1) - p <= TOP_P, p, 0.0)[:, :entries]
    return p / p.sum(-1, keepdim=True), ids[:, :entries]


def reference_mixture(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Soft Thinking's weighted embedding: the sum is made in the table's dtype."""
    weights = weights / weights.sum(-1, keepdim=True)
    return (table[ids] * weights.unsqueeze(-1)).sum(1, dtype=table.dtype)


def bag_mixture(table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(ids, table, per_sample_weights=weights.to(table.dtype), mode="sum")


def gate(shape: Shape, logits: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Assert that every implementation computes the same thing; return ids and weights."""
    arguments = our_arguments(shape, logits.device.type)
    got = signals_topk(logits, **arguments)
    # The naive version sorts everything in float64: a few rows of it are enough.
    few = {k: v[:2] if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    expected = TopKSignals(*signals_naive.signals_topk(logits[:2], **few))
    torch.testing.assert_close(got.weights[:2], expected.weights, rtol=1e-5, atol=1e-6)
    assert got.weight_ids[:2].equal(expected.weight_ids)
    torch.testing.assert_close(got.entropy[:2], expected.entropy, rtol=1e-5, atol=1e-5)
    # Rows must be independent for the comparison below to speak for all of them.
    weights, ids, entropy = lean_weights(logits.float(), shape.entries)
    torch.testing.assert_close(got.weights[:, : shape.entries], weights, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(got.entropy, entropy, rtol=1e-3, atol=1e-3)
    weights, ids = bare_weights(logits.float(), shape.entries)
    bare = signals_topk(logits, **arguments, statistics=False).weights[:, : shape.entries]
    torch.testing.assert_close(bare, weights, rtol=1e-3, atol=1e-5)
    ids = got.weight_ids[:, : shape.entries].contiguous()
    weights = got.weights[:, : shape.entries].contiguous()
    mixed = concept_mixture(table, ids, weights)
    truth = mixture_naive.concept_mixture(table, ids, weights, 1.0, 0, torch.float32)
    tolerance = 1e-5 if table.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(mixed.float(), truth, rtol=tolerance, atol=tolerance)
    return ids, weights


def installed_peers(logits: Tensor) -> dict[str, Callable[[], Any]]:
    """Kernels of other projects for the weights stage, where they are installed."""
    peers: dict[str, Callable[[], Any]] = {}
    if not logits.is_cuda:
        return peers
    if importlib.util.find_spec("vllm"):
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        k = torch.full((len(logits),), TOP_K, device=logits.device)
        p_row = torch.full((len(logits),), TOP_P, device=logits.device)
        # It masks in place, so the copy is part of the figure.
        peers["vllm top-k top-p, topk"] = lambda: torch.topk(
            apply_top_k_top_p(logits.float() / TEMPERATURE, k, p_row).softmax(-1), 10
        )
    p = torch.softmax(logits.float() / TEMPERATURE, dim=-1)
    if importlib.util.find_spec("flashinfer"):
        import flashinfer

        peers["flashinfer renorm, topk"] = lambda: torch.topk(
            flashinfer.sampling.top_p_renorm_probs(
                flashinfer.sampling.top_k_renorm_probs(p, TOP_K), TOP_P
            ),
            10,
        )
    if importlib.util.find_spec("sgl_kernel"):
        import sgl_kernel

        peers["sgl_kernel renorm, topk"] = lambda: torch.topk(
            sgl_kernel.top_p_renorm_prob(sgl_kernel.top_k_renorm_prob(p, TOP_K), TOP_P), 10
        )
    return peers


def show_peers(gpu: bool) -> None:
    """Say of each peer whether it takes part, so that a missing line is never a silent one."""
    for name in ("flashinfer", "sgl_kernel", "vllm"):
        if not importlib.util.find_spec(name):
            print(f"{name}: not installed")
        elif not gpu:
            print(f"{name}: needs a GPU, not measured")


def shapes_of(arguments: argparse.Namespace) -> list[Shape]:
    """The whole grid, or with ``--cross`` each axis alone, the others at their centre."""
    axes = (arguments.batch, arguments.vocab, arguments.hidden, arguments.entries)
    if not arguments.cross:
        return [Shape(*sizes) for sizes in itertools.product(*axes)]
    centre = [c if c in axis else axis[0] for c, axis in zip(CENTRE, axes, strict=True)]
    found = [Shape(*centre)]
    for i, axis in enumerate(axes):
        found += [Shape(*centre[:i], size, *centre[i + 1 :]) for size in axis if size != centre[i]]
    return found


def implementations(
    stage: str, shape: Shape, logits: Tensor, table: Tensor, ids: Tensor, weights: Tensor
) -> dict[str, Callable[[], Any]]:
    """Name to call, ours first."""
    arguments = our_arguments(shape, logits.device.type)
    entries = shape.entries
    compiled_reference = torch.compile(reference_weights)
    compiled_lean = torch.compile(lean_weights)
    compiled_bare = torch.compile(bare_weights)

    def our_step() -> Tensor:
        signals = signals_topk(logits, **arguments)
        return concept_mixture(table, signals.weight_ids, signals.weights)

    def reference_step(chain: Callable[..., Any]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            chosen, token_ids, _ = chain(logits.float(), entries)
            return reference_mixture(table, token_ids, chosen)

        return step

    if stage == "mixture":
        return {
            OURS: lambda: concept_mixture(table, ids, weights),
            REFERENCE: lambda: reference_mixture(table, ids, weights),
            "embedding_bag": lambda: bag_mixture(table, ids, weights),
        }
    if stage == "weights":
        return {
            OURS: lambda: signals_topk(logits, **arguments),
            REFERENCE: lambda: reference_weights(logits.float(), entries),
            "torch.compile(reference chain)": lambda: compiled_reference(logits.float(), entries),
            "topk chain": lambda: lean_weights(logits.float(), entries),
            "torch.compile(topk chain)": lambda: compiled_lean(logits.float(), entries),
            "torch.topk alone": lambda: torch.topk(logits, entries),
            **installed_peers(logits),
        }
    if stage == "bare":
        return {
            OURS: lambda: signals_topk(logits, **arguments, statistics=False),
            "topk chain": lambda: bare_weights(logits.float(), entries),
            "torch.compile(topk chain)": lambda: compiled_bare(logits.float(), entries),
            "torch.topk alone": lambda: torch.topk(logits, entries),
        }
    return {
        OURS: our_step,
        REFERENCE: reference_step(reference_weights),
        "torch.compile(reference chain)": reference_step(compiled_reference),
        "topk chain": reference_step(lean_weights),
    }


def least_bytes(stage: str, shape: Shape, logits: Tensor, table: Tensor) -> int:
    """What a perfect implementation has to move: the logits once, the live rows, the result."""
    weights = logits.element_size() * shape.batch * shape.vocab
    mixture = table.element_size() * shape.batch * shape.hidden * (shape.entries + 1)
    return {"weights": weights, "bare": weights, "mixture": mixture, "step": weights + mixture}[
        stage
    ]


class Stopwatch:
    """Times calls: by events around graph replays on a device, by the clock on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        # Twice the largest L2 cache: writing it evicts what the last call left there.
        self.flush = torch.empty(2**28, dtype=torch.uint8, device=device) if self.on_gpu else None

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def prepare(self, call: Callable[[], Any]) -> Callable[[], float]:
        """A function that makes the call once and returns seconds."""
        for _ in range(3 if self.on_gpu else 1):
            call()
        if not self.on_gpu:
            # One thread's own time does not count what others do on the machine meanwhile.
            clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

            def by_clock() -> float:
                start = clock()
                call()
                return clock() - start

            return by_clock
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()

        def by_events() -> float:
            assert self.flush is not None
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            milliseconds: float = start.elapsed_time(end)
            return milliseconds / 1e3

        return by_events


def quantiles(values: list[float]) -> tuple[float, float, float]:
    q = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return float(q[0]), float(q[1]), float(q[2])


def _version(name: str) -> str:
    return __import__(name).__version__ if importlib.util.find_spec(name) else "none"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "none"


def measure(
    stage: str,
    shape: Shape,
    logits: Tensor,
    table: Tensor,
    watch: Stopwatch,
    *,
    seconds: float,
    least_rounds: int,
) -> list[Line]:
    """All implementations of a stage, taking turns until the time is spent."""
    ids, weights = gate(shape, logits, table)
    calls = implementations(stage, shape, logits, table, ids, weights)
    timers = {name: watch.prepare(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in timers}
    deadline = time.perf_counter() + seconds
    while len(times[OURS]) < least_rounds or (
        time.perf_counter() < deadline and len(times[OURS]) < 1000
    ):
        for name, timer in timers.items():
            times[name].append(timer())
    lines = []
    for name, taken in times.items():
        q20, q50, q80 = quantiles(taken)
        ratios = quantiles([a / b for a, b in zip(taken, times[OURS], strict=True)])
        bandwidth = least_bytes(stage, shape, logits, table) / q50 / 1e9
        lines.append(
            Line(
                stage,
                name,
                shape.batch,
                shape.vocab,
                shape.hidden,
                shape.entries,
                str(logits.dtype).removeprefix("torch."),
                str(table.dtype).removeprefix("torch."),
                len(taken),
                *(round(q * 1e6, 1) for q in (q20, q50, q80)),
                *(round(r, 3) for r in ratios),
                round(bandwidth, 2),
                torch.cuda.get_device_name() if watch.on_gpu else "cpu",
                torch.get_num_threads(),
                torch.__version__,
                _version("triton"),
                _commit(),
            )
        )
    return lines


def show(lines: list[Line]) -> None:
    first = lines[0]
    print(
        f"\n{first.stage}: batch {first.batch}, vocabulary {first.vocab}, hidden {first.hidden},"
        f" {first.entries} entries, {first.logits} logits, {first.table} table,"
        f" {first.rounds} rounds"
    )
    for line in lines:
        print(
            f"  {line.implementation:32} {line.q50_us:12.1f} us ({line.q20_us:.1f} to"
            f" {line.q80_us:.1f})  {line.ratio_q50:7.2f} times ours ({line.ratio_q20:.2f} to"
            f" {line.ratio_q80:.2f})  {line.effective_gb_per_s:8.2f} GB/s"
        )


def show_floors(watch: Stopwatch) -> None:
    """What bounds every figure of a device: an empty kernel, and a copy larger than its caches."""
    one = torch.zeros(1, device=watch.device)
    empty = watch.prepare(lambda: one.add_(1))
    source = torch.zeros(2**28, device=watch.device)
    target = torch.empty_like(source)
    copy = watch.prepare(lambda: target.copy_(source))
    floor = quantiles([empty() for _ in range(200)])
    bandwidth = 2 * source.nbytes / quantiles([copy() for _ in range(20)])[1]
    print(f"floor of one launch {floor[1] * 1e6:.1f} us, copy bandwidth {bandwidth / 1e9:.0f} GB/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--output", type=Path, help="where the CSV goes")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000, 128256, 151936, 262144])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--entries", type=int, nargs="+", default=[1, 5, 10, 30])
    parser.add_argument(
        "--cross",
        action=argparse.BooleanOptionalAction,
        default=not gpu,
        help=f"each axis alone, the others at batch, vocabulary, hidden, entries {CENTRE}",
    )
    parser.add_argument("--stages", nargs="+", default=["weights", "bare", "mixture", "step"])
    parser.add_argument("--table-dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--logit-dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=5.0, help="a stage and shape")
    parser.add_argument("--rounds", type=int, default=7, help="at least")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for all of it")
    arguments = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    watch = Stopwatch(device)
    torch.manual_seed(0)
    show_peers(gpu)
    if gpu:
        show_floors(watch)
    else:
        print("No device at hand: figures for devices are not measured.")
    end = time.perf_counter() + arguments.budget
    lines: list[Line] = []
    measured: set[tuple[str, int, int, int]] = set()
    table = torch.empty(0, 0, device=device)
    for shape in shapes_of(arguments):
        if time.perf_counter() > end:
            print(f"{shape}: not measured, the budget is spent")
            continue
        if table.shape != (shape.vocab, shape.hidden):
            dtype = getattr(torch, arguments.table_dtype)
            # The old one goes first: two of the largest do not fit into a laptop.
            del table
            table = torch.empty(shape.vocab, shape.hidden, dtype=dtype, device=device).normal_()
        logits = torch.randn(shape.batch, shape.vocab, device=device) * 3
        logits = logits.to(getattr(torch, arguments.logit_dtype))
        for stage in arguments.stages:
            sizes = (stage, shape.batch, shape.vocab, shape.entries)
            if stage == "weights" and sizes in measured:
                continue
            measured.add(sizes)
            found = measure(
                stage,
                shape,
                logits,
                table,
                watch,
                seconds=min(arguments.seconds, max(0.0, end - time.perf_counter())),
                least_rounds=arguments.rounds,
            )
            show(found)
            lines += found
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, [field.name for field in fields(Line)], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(asdict(line) for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
