"""``concept_embedding`` on the CPU against its naive version."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenlens_kernels import concept_embedding
from tokenlens_kernels.concept_embedding import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def _case(dtype: torch.dtype, num_tokens: int = 17) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(151, 130, generator=generator).to(dtype)
    token_ids = torch.randint(151, (num_tokens,), generator=generator)
    plan_row = torch.full((num_tokens,), -1)
    plan_row[[0, 5, 6, 16]] = torch.tensor([3, 0, 0, 2])
    # Not looked at, because the position is latent.
    token_ids[0] = 2**50
    weights = torch.rand(4, 6, generator=generator)
    weights[3, 1:] = 0.0
    return {
        "token_ids": token_ids,
        "plan_row": plan_row,
        "plan_ids": torch.randint(151, (4, 6), generator=generator),
        "plan_weights": weights / weights.sum(-1, keepdim=True),
        "table": table,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("shard", [(0, 151), (40, 100)])
def test_equals_naive(dtype: torch.dtype, scale: float, shard: tuple[int, int]) -> None:
    arguments = _case(dtype)
    arguments["table"] = arguments["table"][slice(*shard)]
    for out_dtype in (dtype, torch.float32):
        got = concept_embedding(**arguments, scale=scale, shard_start=shard[0], out_dtype=out_dtype)
        expected = naive.concept_embedding(*arguments.values(), scale, shard[0], out_dtype)
        rounding = ROUNDING[out_dtype]
        torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_tokens_are_the_lookup_bit_for_bit(dtype: torch.dtype) -> None:
    arguments = _case(dtype)
    arguments["table"][::2] = -0.0
    got = concept_embedding(**arguments)
    plain = arguments["plan_row"] < 0
    expected = F.embedding(arguments["token_ids"][plain], arguments["table"])
    assert got[plain].view(torch.uint8).equal(expected.view(torch.uint8))
    all_plain = arguments | {
        "token_ids": torch.arange(17),
        "plan_row": torch.full((17,), -1),
        "plan_ids": torch.zeros(0, 6, dtype=torch.int64),
        "plan_weights": torch.zeros(0, 6),
    }
    assert concept_embedding(**all_plain).equal(arguments["table"][:17])
    scaled = concept_embedding(**all_plain, scale=5.65625)
    assert scaled.equal(arguments["table"][:17] * 5.65625)


def test_a_row_of_no_plan_is_a_plain_token() -> None:
    arguments = _case(torch.float32)
    arguments["plan_row"][3] = 4
    got = concept_embedding(**arguments)
    assert got[3].equal(arguments["table"][arguments["token_ids"][3]])


@pytest.mark.parametrize("all_latent", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_plan_that_is_not_finite_is_a_plain_token(value: float, all_latent: bool) -> None:
    arguments = _case(torch.float32)
    arguments["token_ids"] = torch.arange(17)
    if all_latent:
        arguments["plan_row"] = torch.arange(17) % 4
    expected = concept_embedding(**arguments)
    wild = arguments["plan_row"] == 3
    assert wild.any()
    expected[wild] = arguments["table"][:17][wild]
    arguments["plan_weights"][3, 2] = value
    assert concept_embedding(**arguments).equal(expected)
    rounded = naive.concept_embedding(*arguments.values(), 1.0, 0, torch.float32)
    torch.testing.assert_close(rounded, expected)


def test_all_latent_reads_no_token() -> None:
    arguments = _case(torch.float32, 17)
    arguments["plan_row"] = torch.arange(17) % 4
    arguments["token_ids"] = torch.full((17,), -(2**40))
    got = concept_embedding(**arguments)
    assert got[0].equal(got[4])
    assert got.isfinite().all()


def test_writes_in_place() -> None:
    arguments = _case(torch.bfloat16)
    out = torch.full((17, 130), torch.nan, dtype=torch.bfloat16)
    assert concept_embedding(**arguments, out=out) is out
    assert out.equal(concept_embedding(**arguments))


@pytest.mark.traced
def test_opcheck_and_one_graph() -> None:
    arguments = _case(torch.float32)
    torch.library.opcheck(
        torch.ops.tokenlens.concept_embedding_out.default,
        (*arguments.values(), 1.5, 0, torch.zeros(17, 130)),
    )
    compiled = torch.compile(
        lambda a: concept_embedding(**a) * 2, backend="aot_eager", fullgraph=True
    )
    assert compiled(arguments).equal(concept_embedding(**arguments) * 2)


def test_rejections_name_the_argument_and_what_is_allowed() -> None:
    def rejected(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            concept_embedding(**(_case(torch.float32) | changes))

    rejected(r"token_ids: .* dtype torch.int32", token_ids=torch.zeros(17, dtype=torch.int32))
    rejected(r"plan_row: got shape \(3,\)", plan_row=torch.zeros(3, dtype=torch.int64))
    rejected(r"plan_ids: got shape \(4,\)", plan_ids=torch.zeros(4, dtype=torch.int64))
    rejected(r"plan_weights: got shape \(4, 5\)", plan_weights=torch.zeros(4, 5))
    rejected(r"table: got dtype torch.float64", table=torch.zeros(5, 6, dtype=torch.float64))
    rejected(r"out: got shape \(2, 130\)", out=torch.zeros(2, 130))


def test_plans_add_vectors_and_noise() -> None:
    arguments = _case(torch.float32)
    vectors = torch.randn(3, 130, generator=torch.Generator().manual_seed(1))
    added = (
        vectors,
        torch.tensor([2, 0, 0, 1]),
        torch.tensor([0.0, 0.0, 0.5, 0.0]),
        torch.full((4,), 3),
        torch.arange(4),
    )
    plain = concept_embedding(**arguments)
    got = concept_embedding(**arguments, added=added)
    assert got[[1, 2, 3]].equal(plain[[1, 2, 3]])
    torch.testing.assert_close(got[0] - plain[0], vectors[1])
    torch.testing.assert_close(got[5] - plain[5], vectors[2])
    assert 0.3 < float((got[16] - plain[16]).std()) < 0.7
    expected = naive.concept_embedding(*arguments.values(), 1.0, 0, torch.float32, *added)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for wrong in (added[:4], (vectors.half(), *added[1:]), (vectors[:, :5], *added[1:])):
        with pytest.raises(ValueError, match="added"):
            concept_embedding(**arguments, added=wrong)
    with pytest.raises(ValueError, match="a scale of 2"):
        concept_embedding(**arguments, added=added, scale=2.0)
