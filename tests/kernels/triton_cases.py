"""The Triton kernels against their naive versions.

Not collected by itself: ``test_triton.py`` runs this file in processes of their own, once under
Triton's interpreter (which has to be chosen before Triton is imported) and once on a device where
there is one. The kernels' launchers are called directly, below the dispatcher.
"""

from __future__ import annotations

import importlib
import math
import os
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from kernel_rows import VOCABULARIES, logits, mixed_parameters, parameters
from tokenlens_kernels import LAUNCHES, TopKSignals, philox
from tokenlens_kernels.concept_embedding import naive as embedding_naive
from tokenlens_kernels.concept_mixture import naive as mixture_naive
from tokenlens_kernels.concept_mixture import triton as mixture_triton
from tokenlens_kernels.dense_mixture import naive as dense_naive
from tokenlens_kernels.dense_mixture import triton as dense_triton
from tokenlens_kernels.logit_edit import naive as edit_naive
from tokenlens_kernels.logit_edit import triton as edit_triton
from tokenlens_kernels.signals_topk import naive as signals_naive
from tokenlens_kernels.signals_topk import triton as signals_triton

# The interpreter is numpy, which warns where a device silently makes an infinity or a NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding of the result; the interpreter truncates to bfloat16 where devices round.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# The interpreter is numpy, block by block: the full sizes are for devices.
LARGE_ROWS = [1] if INTERPRETED else [1, 7, 64]
SMALL_SHAPES = (
    [(1, 1), (1, 64), (7, 10), (7, 64), (64, 1)]
    if INTERPRETED
    else [(num_rows, width) for num_rows in (1, 7, 64) for width in (1, 10, 64)]
)
MIXTURE_SHAPES = [(1, 1, 8), (7, 10, 96), (2 if INTERPRETED else 64, 64, 1250)]


def _moved(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def _run(z: torch.Tensor, arguments: dict[str, Any]) -> TopKSignals:
    # Moving a strided tensor would close its gaps: the storage is moved, then viewed again.
    storage = z.new_empty(0).set_(z.untyped_storage()).to(DEVICE)
    moved = storage.as_strided(z.shape, z.stride(), z.storage_offset())
    return TopKSignals(*(t.cpu() for t in signals_triton.signals_topk(moved, **_moved(arguments))))


def _assert_same(got: TopKSignals, expected: TopKSignals) -> None:
    for name in ("ids", "weight_ids"):
        assert getattr(got, name).equal(getattr(expected, name)), name
    for name, tolerance in (
        ("logsumexp", 1e-6),
        ("entropy", 2e-5),
        ("max_probability", 2e-6),
        ("probabilities", 3e-6),
        ("weights", 1e-5),
    ):
        torch.testing.assert_close(
            getattr(got, name),
            getattr(expected, name),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def _check(z: torch.Tensor, arguments: dict[str, Any]) -> None:
    _assert_same(_run(z, arguments), TopKSignals(*signals_naive.signals_topk(z, **arguments)))


@pytest.mark.parametrize(("num_rows", "width"), SMALL_SHAPES)
def test_signals_of_a_small_vocabulary(num_rows: int, width: int) -> None:
    z = logits(num_rows, 111, 111, seed=width)
    _check(z, mixed_parameters(num_rows, 111, width, seed=num_rows + width))


@pytest.mark.parametrize("width", [1, 10, 64])
@pytest.mark.parametrize("num_rows", LARGE_ROWS)
@pytest.mark.parametrize(("vocab_size", "columns"), VOCABULARIES[1:])
def test_signals_of_a_large_vocabulary(
    vocab_size: int, columns: int, num_rows: int, width: int
) -> None:
    z = logits(num_rows, vocab_size, columns, seed=width)
    _check(z, mixed_parameters(num_rows, vocab_size, width, seed=vocab_size + width))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 17, 33])
def test_signals_in_every_dtype(dtype: torch.dtype, width: int) -> None:
    z = logits(12, 5003, 5003, dtype, seed=width)
    _check(z, mixed_parameters(12, 5003, width, seed=width))


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 4095, 4096, 4097])
def test_signals_around_the_tiles(vocab_size: int) -> None:
    width = min(9, vocab_size)
    z = logits(3, vocab_size, vocab_size + 3, seed=vocab_size)
    _check(z, mixed_parameters(3, vocab_size, width, seed=vocab_size))


def test_signals_of_extreme_logits() -> None:
    z = torch.zeros(6, 300)
    z[0] = torch.finfo(torch.float32).min
    z[1] = torch.finfo(torch.float32).min
    z[1, 7] = torch.finfo(torch.float32).max
    z[2, [2, 200]] = torch.tensor([-0.0, 0.0])
    z[3, 5:] = -torch.inf
    z[4] = -torch.inf
    z[4, 299] = -3e38
    z[5, 100:] = -1e4
    _check(z, parameters(6, 300, 10, noise_temperature=0.5))
    _check(z, parameters(6, 300, 10, inverse_temperature=1e6))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-44])
@pytest.mark.parametrize("name", ["inverse_temperature", "noise_temperature"])
def test_signals_of_parameters_that_are_not_finite(name: str, value: float) -> None:
    z = torch.randn(3, 500)
    z[:, 7] = -torch.inf
    arguments = parameters(3, 500, 6, top_k=6, noise_temperature=0.5)
    expected = _run(z, arguments)
    arguments[name][1] = value
    got = _run(z, arguments)
    for tensor, same in zip(got, expected):
        assert tensor[[0, 2]].equal(same[[0, 2]])
    assert all(tensor.isfinite().all() for tensor in got[1:])
    invalid = bool(got.logsumexp[1].isnan())
    assert invalid == (not got.weights[1].any())
    assert invalid or abs(float(got.weights[1].sum()) - 1) < 1e-5
    if invalid:
        assert not any(tensor[1].any() for tensor in got[1:])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_dense_mixture_of_a_temperature_that_is_not_finite(value: float) -> None:
    z, table = torch.randn(3, 300), torch.randn(300, 20)
    inverse = torch.tensor([1.0, value, 1.0])
    out = torch.full((3, 20), torch.nan, device=DEVICE)
    arguments = (z, table, torch.ones(3, dtype=torch.bool), inverse)
    dense_triton.dense_mixture_out(*(t.to(DEVICE) for t in arguments), 300, 1.0, 0, out)
    expected = dense_naive.dense_mixture(*arguments, 300, 1.0, 0, torch.float32)
    assert not out[1].any()
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_signals_of_split_maxima_that_overflow_when_subtracted() -> None:
    z = torch.full((1, 9000), torch.finfo(torch.float32).min)
    z[0, 8999] = torch.finfo(torch.float32).max
    _check(z, parameters(1, 9000, 4))
    z[0, :4096] = -torch.inf
    _check(z, parameters(1, 9000, 4))


def test_signals_write_nothing_into_inactive_rows_but_zeros() -> None:
    z = torch.full((5, 200), torch.nan)
    got = _run(z, parameters(5, 200, 7, active=False, noise_temperature=1.0))
    assert all((tensor == 0).all() for tensor in got)


@pytest.mark.parametrize("vocab_size", [111, 5003])
def test_a_row_alone_equals_the_row_in_a_batch(vocab_size: int) -> None:
    z = logits(9, vocab_size, vocab_size, seed=1)
    arguments = mixed_parameters(9, vocab_size, 6, seed=3)
    batch = _run(z, arguments)
    for row in range(9):
        alone = {
            name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        for a, b in zip(_run(z[row : row + 1], alone), batch):
            assert a[0].nan_to_num(7.0).equal(b[row].nan_to_num(7.0))


def test_the_largest_noised_weight_is_a_fair_draw() -> None:
    count, vocab = 60 if INTERPRETED else 20_000, 111
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(5)) * 2
    row[::4] = -torch.inf
    arguments = parameters(count, vocab, 12, top_k=12, top_p=0.95, noise_temperature=0.7, seed=77)
    got = _run(row.expand(count, vocab).contiguous(), arguments)
    counts = torch.bincount(got.weight_ids[:, 0], minlength=vocab)
    probabilities = torch.zeros(vocab)
    live = got.probabilities[0] > 0
    probabilities[got.ids[0][live]] = got.probabilities[0][live]
    assert (counts[probabilities == 0] == 0).all()
    assert (got.weight_ids % 4 != 0).all()
    expected = probabilities[probabilities > 0] * count
    assert ((counts[probabilities > 0] - expected) ** 2 / expected).sum() < 40


@triton.jit
def _rand_kernel(seed_ptr, offset_ptr, out_ptr, COUNT: tl.constexpr):
    lane = tl.arange(0, COUNT)
    tl.store(out_ptr + lane, tl.rand(tl.load(seed_ptr), tl.load(offset_ptr + lane)))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_uniform_is_that_of_triton_bit_for_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(1)
    position = torch.randint(0, philox.MAX_POSITION, (256,), generator=generator)
    position[:64] = torch.arange(64)
    index = torch.randint(0, philox.MAX_INDEX, (256,), generator=generator)
    offset = philox.offset(position, index, 5)
    out = torch.empty(256, device=DEVICE)
    _rand_kernel[(1,)](torch.tensor([seed], device=DEVICE), offset.to(DEVICE), out, COUNT=256)
    assert out.cpu().equal(philox.uniform(seed, offset))


def _mixture_case(
    num_rows: int, width: int, hidden: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows * 1000 + width)
    table = torch.randn(151, hidden, generator=generator).to(dtype)
    ids = torch.randint(151, (num_rows, width), generator=generator)
    weights = torch.rand(num_rows, width, generator=generator)
    weights[weights < 0.2] = 0.0
    weights[::3, 1:] = 0.0
    weights[::3, 0] = 1.0
    return table, ids, weights / weights.sum(-1, keepdim=True).clamp_min(0.1)


def _mix(
    table: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    scale: float = 1.0,
    shard_start: int = 0,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return mixture_triton.concept_mixture(
        table.to(DEVICE),
        ids.to(DEVICE),
        weights.to(DEVICE),
        scale,
        shard_start,
        out_dtype or table.dtype,
    ).cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width", "hidden"), MIXTURE_SHAPES)
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_mixture(num_rows: int, width: int, hidden: int, dtype: torch.dtype, scale: float) -> None:
    table, ids, weights = _mixture_case(num_rows, width, hidden, dtype)
    expected = mixture_naive.concept_mixture(table, ids, weights, scale, 0, dtype)
    got = _mix(table, ids, weights, scale)
    torch.testing.assert_close(got, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    partial = _mix(table, ids, weights, scale, 0, torch.float32)
    exact = mixture_naive.concept_mixture(table, ids, weights, scale, 0, torch.float32)
    torch.testing.assert_close(partial, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mixture_of_one_entry_is_a_lookup(dtype: torch.dtype) -> None:
    table = torch.randn(50, 33).to(dtype)
    ids = torch.randint(50, (20, 5))
    weights = torch.zeros(20, 5)
    weights[:, 0] = 1.0
    assert _mix(table, ids, weights).equal(table[ids[:, 0]])
    scaled = _mix(table, ids, weights, 5.65625, 0, torch.float32)
    assert scaled.equal(table[ids[:, 0]].float() * 5.65625)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dead_entries_are_never_read(dtype: torch.dtype) -> None:
    table, ids, weights = _mixture_case(9, 6, 40, dtype)
    expected = _mix(table, ids, weights)
    unused = torch.ones(table.shape[0], dtype=torch.bool)
    unused[ids[weights != 0]] = False
    table[unused] = torch.nan
    anything = torch.where(weights != 0, ids, torch.tensor([-1, 2**40, -(2**60)]).repeat(2))
    assert _mix(table, anything, weights).equal(expected)


def test_mixture_shards_add_up() -> None:
    table, ids, weights = _mixture_case(13, 10, 64, torch.bfloat16)
    whole = _mix(table, ids, weights, 2.5, 0, torch.float32)
    parts = [
        _mix(table[start:stop], ids, weights, 2.5, start, torch.float32)
        for start, stop in ((0, 50), (50, 51), (51, 151))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("shard", [(0, 151), (40, 100)])
def test_embedding_of_a_stream(dtype: torch.dtype, scale: float, shard: tuple[int, int]) -> None:
    table, plan_ids, plan_weights = _mixture_case(4, 6, 130, dtype)
    table = table[slice(*shard)]
    token_ids = torch.randint(151, (17,))
    plan_row = torch.full((17,), -1)
    plan_row[[0, 5, 6, 16]] = torch.tensor([3, 0, 0, 2])
    token_ids[0] = 2**50
    plan_row[3] = 4
    out = torch.full((17, 130), torch.nan, dtype=dtype, device=DEVICE)
    arguments = (token_ids, plan_row, plan_ids, plan_weights, table)
    mixture_triton.concept_embedding_out(*(t.to(DEVICE) for t in arguments), scale, shard[0], out)
    expected = embedding_naive.concept_embedding(*arguments, scale, shard[0], dtype)
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(out.cpu(), expected, rtol=rounding, atol=rounding)
    plain = (plan_row < 0) & (token_ids >= shard[0]) & (token_ids < shard[1])
    if scale == 1.0:
        assert out.cpu()[plain].equal(table[token_ids[plain] - shard[0]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plans_add_vectors_and_noise(dtype: torch.dtype) -> None:
    table, plan_ids, plan_weights = _mixture_case(4, 6, 130, dtype)
    # The second is nothing but its vector, the third has a vector and noise.
    plan_weights[1] = 0.0
    vectors = torch.randn(3, 130, generator=torch.Generator().manual_seed(1))
    vectors[0] = torch.nan
    added = (
        vectors,
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([0.0, 0.0, 0.3, 2.0]),
        torch.tensor([9, 9, 2**40 + 7, -3]),
        torch.tensor([0, 5, 6, 2**31 - 1]),
    )
    token_ids, plan_row = torch.arange(7), torch.tensor([-1, 0, 1, 2, 3, -1, 2])
    arguments = (token_ids, plan_row, plan_ids, plan_weights, table)
    out = torch.full((7, 130), torch.nan, dtype=dtype, device=DEVICE)
    moved = [tensor.to(DEVICE) for tensor in added]
    mixture_triton.concept_embedding_out(*(t.to(DEVICE) for t in arguments), 1.0, 0, out, *moved)
    expected = embedding_naive.concept_embedding(*arguments, 1.0, 0, dtype, *added)
    rounding = max(ROUNDING[dtype], 4e-6)
    torch.testing.assert_close(out.cpu(), expected, rtol=rounding, atol=rounding)
    without = torch.empty_like(out)
    mixture_triton.concept_embedding_out(*(t.to(DEVICE) for t in arguments), 1.0, 0, without)
    # Plans that add nothing, and plain tokens, are bit for bit what they were.
    assert out[[0, 1, 5]].equal(without[[0, 1, 5]])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_plan_that_is_not_finite_is_a_plain_token(value: float) -> None:
    table, plan_ids, plan_weights = _mixture_case(4, 11, 1300, torch.float32)
    token_ids, plan_row = torch.arange(8), torch.arange(8) % 5 - 1

    def embedded() -> torch.Tensor:
        out = torch.full((8, 1300), torch.nan, device=DEVICE)
        arguments = (token_ids, plan_row, plan_ids, plan_weights, table)
        mixture_triton.concept_embedding_out(*(t.to(DEVICE) for t in arguments), 1.0, 0, out)
        return out.cpu()

    expected = embedded()
    wild = plan_row == 3
    expected[wild] = table[:8][wild]
    plan_weights[3, 9] = value
    assert embedded().equal(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logit_edit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    z = logits(9, 9001, 9009, dtype, seed=2)
    slots = torch.tensor([2, -1, 0, 5, 3, 3, 4, 1, 99])
    ids = torch.randint(-3, 9005, (6, 150), generator=generator)
    ids[3] = torch.randint(0, 40, (150,), generator=generator)
    deltas = torch.randn(6, 150, generator=generator)
    deltas[:, ::7] = 0.0
    deltas[2, 1] = -torch.inf
    counts = torch.tensor([150, 3, 65, 150, 0, 64])
    forced = torch.tensor([-1, 9000, -1, -1, 9001, -1])
    arguments = (slots, ids, deltas, counts, forced)
    expected = z.clone()
    edit_naive.logit_edit(expected, *arguments, 9001)
    storage = torch.full((9, 9020), 3.0, dtype=dtype, device=DEVICE)
    got = storage[:, :9009]
    got.copy_(z)
    edit_triton.logit_edit(got, *(t.to(DEVICE) for t in arguments), 9001)
    # Sums of several float32 deltas in another order; everything else is exact.
    torch.testing.assert_close(got.cpu(), expected, rtol=ROUNDING[dtype], atol=1e-5, equal_nan=True)
    assert (storage[:, 9009:] == 3.0).all()
    for row in (1, 6, 8):
        assert got[row].cpu().view(torch.uint8).equal(z[row].contiguous().view(torch.uint8))
    changed = (got.cpu() != z) & ~z.isnan()
    touched = torch.zeros_like(changed)
    for row in (0, 2, 3, 4, 5):
        slot = int(slots[row])
        live = ids[slot, : int(counts[slot])]
        touched[row, live[(live >= 0) & (live < 9001)]] = True
    touched[7] = True
    assert not (changed & ~touched).any()


def test_what_there_is_one_of_a_row_may_be_a_column_of_a_table() -> None:
    z, arguments = logits(7, 300, 300, seed=5), mixed_parameters(7, 300, 8, seed=6)
    expected, columns = _run(z, arguments), {}
    for name in signals_triton.PER_ROW:
        values = arguments[name].to(DEVICE)
        # Beside it stand numbers that must not be read.
        columns[name] = torch.stack([values, torch.full_like(values, 1), values], dim=1)[:, 2]
        assert columns[name].stride(0) == 3
    got = signals_triton.signals_topk(z.to(DEVICE), **(arguments | columns))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.cpu().equal(theirs) or theirs.isnan().any()


def test_deltas_of_a_whole_row_may_be_one_number() -> None:
    z, ids = torch.randn(4, 90), torch.randint(-1, 90, (4, 40))
    deltas = torch.tensor([1.5, 0.0, -torch.inf, -2.0])[:, None]
    rows = torch.arange(4)
    rest = (torch.full_like(rows, 40), torch.full_like(rows, -1))
    expected = z.clone()
    edit_naive.logit_edit(expected, rows, ids, deltas.expand(4, 40), *rest, 90)
    got = z.to(DEVICE)
    arguments = (rows, ids, deltas, *rest)
    rows, ids, deltas, *rest = (t.to(DEVICE) for t in arguments)
    edit_triton.logit_edit(got, rows, ids, deltas.expand(4, 40), *rest, 90)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shard", [(0, 700), (128, 500), (650, 900)])
def test_dense_mixture(dtype: torch.dtype, shard: tuple[int, int]) -> None:
    num_rows, vocab, hidden = 18, 700, 130
    z = logits(num_rows, vocab, vocab + 3, torch.float32, seed=4)
    table = torch.randn(900, hidden).to(dtype)[slice(*shard)]
    arguments = mixed_parameters(num_rows, vocab, 1, seed=9)
    chosen = (arguments["active"], arguments["inverse_temperature"], vocab, 1.5, shard[0])
    expected = dense_naive.dense_mixture(z, table, *chosen, torch.float32)
    out = torch.full((num_rows, hidden), torch.nan, device=DEVICE)
    moved = (t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in chosen)
    dense_triton.dense_mixture_out(z.to(DEVICE), table.to(DEVICE), *moved, out)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    rounded = torch.full((num_rows, hidden), torch.nan, dtype=dtype, device=DEVICE)
    moved = (t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in chosen)
    dense_triton.dense_mixture_out(z.to(DEVICE), table.to(DEVICE), *moved, rounded)
    tolerance = max(ROUNDING[dtype], 1e-5)
    torch.testing.assert_close(rounded.cpu().float(), expected, rtol=tolerance, atol=tolerance)


class _Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any, counts: list[str]) -> None:
        self.kernel, self.counts = kernel, counts

    def __getitem__(self, grid: Any) -> Any:
        self.counts.append(str(getattr(self.kernel, "__name__", self.kernel)))
        return self.kernel[grid]


@pytest.mark.parametrize("num_rows", [1, 5])
def test_the_ops_reach_the_kernels_in_few_launches(
    monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    """The functions that the dispatcher calls for device tensors, whatever the batch."""
    launches: list[str] = []
    for module in (signals_triton, mixture_triton, edit_triton, dense_triton):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, _Counted(getattr(module, name), launches))

    def launched(op: str, *arguments: Any) -> tuple[int, Any]:
        launches.clear()
        folder, _, function = op.partition(".")
        module = importlib.import_module(f"tokenlens_kernels.{folder}")
        moved = (a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments)
        result = getattr(module, function)(*moved)
        return len(launches), result

    z = torch.randn(num_rows, 300)
    arguments = parameters(num_rows, 300, 4)
    count, outputs = launched("signals_topk._device", z, *arguments.values())
    assert count == LAUNCHES["signals_topk"]
    _assert_same(
        TopKSignals(*(t.cpu() for t in outputs)),
        TopKSignals(*signals_naive.signals_topk(z, **arguments)),
    )
    table = torch.randn(300, 16)
    weights, ids = outputs[5].cpu(), outputs[6].cpu()
    expected = mixture_naive.concept_mixture(table, ids, weights, 1.0, 0, torch.float32)
    count, mixed = launched("concept_mixture._device", table, ids, weights, 1.0, 0, None)
    assert count == LAUNCHES["concept_mixture"]
    torch.testing.assert_close(mixed.cpu(), expected, rtol=1e-5, atol=1e-5)
    out = torch.empty(num_rows, 16, device=DEVICE)
    assert launched("concept_mixture._device_out", table, ids, weights, 1.0, 0, out)[0] == 1
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    rows = torch.arange(num_rows)
    arguments_embedding = (rows, rows, ids, weights, table, 1.0, 0, out)
    assert launched("concept_embedding._device_out", *arguments_embedding)[0] == 1
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    active, inverse = arguments["active"], arguments["inverse_temperature"]
    count, _ = launched("dense_mixture._device_out", z, table, active, inverse, 300, 1.0, 0, out)
    assert count == LAUNCHES["dense_mixture_out"]
    torch.testing.assert_close(out.cpu(), z.softmax(-1) @ table, rtol=1e-5, atol=1e-5)
    edited = z.clone().to(DEVICE)
    deltas = torch.ones(num_rows, 1)
    none = torch.full((num_rows,), -1)
    edits = (edited, rows, ids[:, :1], deltas, torch.ones_like(rows), none, 300)
    assert launched("logit_edit._device", *edits)[0] == LAUNCHES["logit_edit"]
    assert (edited.cpu() != z).sum() == num_rows


def test_warm_up_runs_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()

    def spied(name: str, function: Any) -> Any:
        def spy(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return function(*args, **kwargs)

        return spy

    module = importlib.import_module("tokenlens_kernels.warm_up")
    ops = ("signals_topk", "concept_mixture", "concept_embedding", "dense_mixture", "logit_edit")
    for name in ops:
        monkeypatch.setattr(module, name, spied(name, getattr(module, name)))
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden": 16, "table_dtype": torch.float32}
    module.warm_up(DEVICE, **sizes, widths=(4, 16), dense=True)
    # On a CPU there is nothing to compile.
    assert called == (set() if INTERPRETED else set(ops))
