"""``dense_mixture`` on the CPU against its naive version."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_rows import logits, mixed_parameters
from tokenlens_kernels import dense_mixture
from tokenlens_kernels.dense_mixture import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def _case(num_rows: int, vocab: int, hidden: int, dtype: torch.dtype) -> dict[str, Any]:
    arguments = mixed_parameters(num_rows, vocab, 1, seed=9)
    generator = torch.Generator().manual_seed(1)
    return {
        "logits": logits(num_rows, vocab, vocab + 3, seed=4),
        "table": torch.randn(vocab + 200, hidden, generator=generator).to(dtype),
        "active": arguments["active"],
        "inverse_temperature": arguments["inverse_temperature"],
        "vocab_size": vocab,
    }


def _naive(case: dict[str, Any], scale: float, start: int, dtype: torch.dtype) -> torch.Tensor:
    return naive.dense_mixture(*case.values(), scale, start, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab", "hidden"), [(1, 111, 40), (35, 5003, 130)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_equals_naive(
    num_rows: int, vocab: int, hidden: int, dtype: torch.dtype, scale: float
) -> None:
    case = _case(num_rows, vocab, hidden, dtype)
    for out_dtype in (dtype, torch.float32):
        got = dense_mixture(**case, scale=scale, out_dtype=out_dtype)
        rounding = ROUNDING[out_dtype]
        torch.testing.assert_close(
            got, _naive(case, scale, 0, out_dtype), rtol=rounding, atol=rounding
        )


def test_naive_is_softmax_times_table() -> None:
    case = _case(3, 300, 20, torch.float32)
    case["logits"] = torch.randn(3, 300)
    case["table"] = case["table"][:300]
    case["active"][:] = True
    p = (case["logits"].double() * case["inverse_temperature"].double().unsqueeze(-1)).softmax(-1)
    expected = (p @ case["table"].double()).float()
    torch.testing.assert_close(_naive(case, 1.0, 0, torch.float32), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_temperature_that_is_not_finite_gives_zeros(value: float) -> None:
    case = _case(3, 300, 20, torch.float32)
    case["logits"], case["table"] = torch.randn(3, 300), case["table"][:300]
    case["active"][:], case["inverse_temperature"][:] = True, 1.0
    expected = dense_mixture(**case)
    case["inverse_temperature"][1] = value
    for got in (dense_mixture(**case), _naive(case, 1.0, 0, torch.float32)):
        assert (got[1] == 0).all()
        torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])


def test_shards_add_up() -> None:
    case = _case(18, 5003, 64, torch.float32)
    table = case.pop("table")
    whole = dense_mixture(table=table, **case)
    parts = [
        dense_mixture(table=table[start:stop], shard_start=start, **case)
        for start, stop in ((0, 2000), (2000, 5000), (5000, 5203))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_alone_equals_the_row_in_a_batch(threads: int) -> None:
    torch.set_num_threads(threads)
    case = _case(19, 5003, 257, torch.bfloat16)
    batch = dense_mixture(**case)
    for row in range(19):
        alone = {
            name: value[row : row + 1]
            if isinstance(value, torch.Tensor) and name != "table"
            else value
            for name, value in case.items()
        }
        assert dense_mixture(**alone)[0].equal(batch[row])


@pytest.mark.traced
def test_writes_in_place_and_opcheck_and_one_graph() -> None:
    case = _case(9, 300, 20, torch.float32)
    out = torch.full((9, 20), torch.nan)
    assert dense_mixture(**case, out=out) is out
    assert out.equal(dense_mixture(**case))
    torch.library.opcheck(
        torch.ops.tokenlens.dense_mixture_out.default,
        (*case.values(), 1.5, 0, torch.zeros(9, 20)),
    )
    compiled = torch.compile(lambda c: dense_mixture(**c) * 2, backend="aot_eager", fullgraph=True)
    assert compiled(case).equal(out * 2)


def test_rejections_name_the_argument_and_what_is_allowed() -> None:
    def rejected(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            dense_mixture(**(_case(9, 300, 20, torch.float32) | changes))

    rejected(r"logits: got .* dtype torch.float64", logits=torch.zeros(9, 303).double())
    rejected(r"logits: got a column stride of 9, allowed is 1", logits=torch.randn(303, 9).t())
    rejected(r"table: got dtype torch.float64", table=torch.zeros(5, 6, dtype=torch.float64))
    rejected(r"active: .* dtype torch.int64", active=torch.zeros(9, dtype=torch.int64))
    rejected(r"inverse_temperature: got shape \(3,\)", inverse_temperature=torch.ones(3))
    rejected(r"vocab_size: got 304, allowed is 1 to .* 303", vocab_size=304)
    rejected(r"shard_start: got -1, allowed is 0 or more", shard_start=-1)
    rejected(r"out_dtype: got torch.float16", out_dtype=torch.float16)
