"""``concept_mixture`` on the CPU against its naive version."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tokenlens_kernels import concept_mixture
from tokenlens_kernels.concept_mixture import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One rounding of the result, and for float32 the order of the sum.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def _case(
    num_rows: int, width: int, hidden: int, dtype: torch.dtype, vocab: int = 151
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows * 1000 + width)
    table = torch.randn(vocab, hidden, generator=generator).to(dtype)
    ids = torch.randint(vocab, (num_rows, width), generator=generator)
    weights = torch.rand(num_rows, width, generator=generator)
    weights[weights < 0.2] = 0.0
    weights[::3, 1:] = 0.0
    weights[::3, 0] = 1.0
    return table, ids, weights / weights.sum(-1, keepdim=True).clamp_min(0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width", "hidden"), [(1, 1, 8), (7, 10, 96), (64, 64, 257)])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_equals_naive(
    num_rows: int, width: int, hidden: int, dtype: torch.dtype, scale: float
) -> None:
    table, ids, weights = _case(num_rows, width, hidden, dtype)
    got = concept_mixture(table, ids, weights, scale=scale)
    expected = naive.concept_mixture(table, ids, weights, scale, 0, dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_naive_is_the_formula(dtype: torch.dtype) -> None:
    table, ids, weights = _case(7, 10, 96, dtype)
    expected = torch.stack(
        [sum(w * table[i].double() for w, i in zip(*row)) for row in zip(weights.double(), ids)]
    )
    got = naive.concept_mixture(table, ids, weights, 1.0, 0, torch.float32)
    torch.testing.assert_close(got, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", ["op", "naive"])
def test_a_row_with_one_entry_is_a_lookup(dtype: torch.dtype, function: str) -> None:
    table = torch.randn(50, 33).to(dtype)
    ids = torch.randint(50, (20, 5))
    weights = torch.zeros(20, 5)
    weights[:, 0] = 1.0
    for scale in (1.0, 5.65625):
        if function == "op":
            got = concept_mixture(table, ids, weights, scale=scale)
        else:
            got = naive.concept_mixture(table, ids, weights, scale, 0, dtype)
        assert got.equal(table[ids[:, 0]] * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dead_entries_are_never_read(dtype: torch.dtype) -> None:
    table, ids, weights = _case(9, 6, 40, dtype)
    expected = concept_mixture(table, ids, weights)
    poisoned = table.clone()
    used = torch.zeros(table.shape[0], dtype=torch.bool)
    used[ids[weights != 0]] = True
    poisoned[~used] = torch.nan
    anything = torch.where(weights != 0, ids, torch.tensor([-1, 2**40, -(2**60)]).repeat(2))
    assert concept_mixture(poisoned, anything, weights).equal(expected)
    truth = naive.concept_mixture(poisoned, anything, weights, 1.0, 0, dtype)
    assert truth.isfinite().all()


def test_a_single_entry_keeps_the_sign_of_its_zeros() -> None:
    table = torch.tensor([[-0.0, 0.0, 1.0], [2.0, -0.0, -0.0]])
    ids, weights = (
        torch.tensor([[0, 1], [1, 0], [0, 1]]),
        torch.tensor([[1, 0], [1, 0], [0.5, 0.5]]),
    )
    got = concept_mixture(table, ids, weights)
    assert got[:2].view(torch.int32).equal(table.view(torch.int32))


def test_a_row_without_entries_is_zero() -> None:
    table = torch.full((4, 8), torch.nan)
    got = concept_mixture(table, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))
    assert got.equal(torch.zeros(2, 8))


@pytest.mark.parametrize("outside", [-1, 5, 2**40])
def test_one_row_with_a_live_entry_of_another_shard(outside: int) -> None:
    table = torch.randn(5, 4)
    ids, weights = torch.tensor([[3, outside, 2, 3]]), torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    got = concept_mixture(table, ids, weights)
    truth = naive.concept_mixture(table, ids, weights, 1.0, 0, torch.float32)
    torch.testing.assert_close(got, truth, rtol=1e-6, atol=1e-6)
    assert got.equal(concept_mixture(table, ids.repeat(2, 1), weights.repeat(2, 1))[:1])


def test_the_first_call_may_be_in_inference_mode() -> None:
    code = (
        "import torch; from tokenlens_kernels import concept_mixture as mix\n"
        "table = torch.randn(4, 2, requires_grad=True); out = torch.zeros(1, 2)\n"
        "what = torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.5]])\n"
        "with torch.inference_mode(): first = mix(table, *what)\n"
        "assert mix(table, *what, out=out).equal(first)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_rows_and_no_entries() -> None:
    table = torch.randn(5, 4)
    for shape in ((0, 3), (2, 0), (1, 0)):
        got = concept_mixture(table, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape))
        assert got.equal(torch.zeros(shape[0], 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_add_up(dtype: torch.dtype) -> None:
    table, ids, weights = _case(13, 10, 64, dtype)
    whole = concept_mixture(table, ids, weights, scale=2.5, out_dtype=torch.float32)
    parts = [
        concept_mixture(
            table[start:stop],
            ids,
            weights,
            scale=2.5,
            shard_start=start,
            out_dtype=torch.float32,
        )
        for start, stop in ((0, 50), (50, 51), (51, 151))
    ]
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_in_place(dtype: torch.dtype) -> None:
    table, ids, weights = _case(7, 10, 96, dtype)
    out = torch.full((7, 96), torch.nan, dtype=dtype)
    address = out.data_ptr()
    assert concept_mixture(table, ids, weights, out=out) is out
    assert out.data_ptr() == address
    assert out.equal(concept_mixture(table, ids, weights))
    partial = torch.full((7, 96), torch.nan)
    concept_mixture(table, ids, weights, out=partial)
    assert partial.equal(concept_mixture(table, ids, weights, out_dtype=torch.float32))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_alone_equals_the_row_in_a_batch(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    table, ids, weights = _case(64, 17, 333, dtype)
    # Rows without dead entries take a shorter way when they come alone.
    weights[1::3] += 0.01
    batch = concept_mixture(table, ids, weights, scale=1.7)
    for row in range(64):
        alone = concept_mixture(table, ids[row : row + 1], weights[row : row + 1], scale=1.7)
        assert alone[0].equal(batch[row])


def test_a_strided_table_is_read_in_place() -> None:
    storage = torch.randn(30, 24)
    table = storage[:, :16]
    ids, weights = torch.randint(30, (5, 4)), torch.rand(5, 4)
    expected = naive.concept_mixture(table, ids, weights, 1.0, 0, torch.float32)
    torch.testing.assert_close(concept_mixture(table, ids, weights), expected)


def test_published_weighted_embedding(soft_vectors: dict) -> None:
    """Soft Thinking renormalises the weights and sums in the table's dtype."""
    record = soft_vectors["st_weighted_embedding"]
    weights = torch.tensor(record["weights"])
    weights = weights / weights.sum(-1, keepdim=True)
    ids = torch.tensor(record["ids"])
    for name, dtype in (("torch.float32", torch.float32), ("torch.bfloat16", torch.bfloat16)):
        table = torch.linspace(-1, 1, 24).reshape(6, 4).to(dtype)
        got = concept_mixture(table, ids, weights)
        # The reference rounds each product to bfloat16 before the sum: two units in the last place.
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(
            got.float(), torch.tensor(record[name]), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    table, ids, weights = _case(3, 4, 8, dtype)
    for out_dtype in (None, torch.float32):
        torch.library.opcheck(
            torch.ops.tokenlens.concept_mixture.default,
            (table, ids, weights, 1.5, 0, out_dtype),
        )
    torch.library.opcheck(
        torch.ops.tokenlens.concept_mixture_out.default,
        (table, ids, weights, 1.0, 2, torch.zeros(3, 8, dtype=dtype)),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic: bool) -> None:
    def step(table: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(ids.shape[0], table.shape[1])
        concept_mixture(table, ids, weights, out=out)
        return out + concept_mixture(table, ids, weights * 2)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for num_rows in (3, 5):
        table, ids, weights = _case(num_rows, 4, 8, torch.float32)
        torch.testing.assert_close(compiled(table, ids, weights), step(table, ids, weights))


def test_rejections_name_the_argument_and_what_is_allowed() -> None:
    table, ids, weights = _case(3, 4, 8, torch.float32)

    def rejected(message: str, **changes: object) -> None:
        arguments = {"table": table, "ids": ids, "weights": weights} | changes
        with pytest.raises(ValueError, match=message):
            concept_mixture(**arguments)

    rejected(r"table: got dtype torch.float64, allowed are", table=table.double())
    rejected(r"table: got shape \(8, 151\).*contiguous", table=table.t())
    rejected(r"ids: got shape .* dtype torch.int32", ids=ids.int())
    rejected(r"ids: got shape \(3,\)", ids=ids[:, 0])
    rejected(r"weights: got shape \(3, 3\)", weights=weights[:, :3])
    rejected(r"weights: .* dtype torch.float64", weights=weights.double())
    rejected(r"out_dtype: got torch.float16", out_dtype=torch.float16)
    rejected(r"out: got shape \(2, 8\)", out=torch.zeros(2, 8))
    rejected(r"out: .* dtype torch.bfloat16", out=torch.zeros(3, 8, dtype=torch.bfloat16))
