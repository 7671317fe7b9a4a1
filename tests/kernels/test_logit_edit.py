"""``logit_edit`` on the CPU against its naive version."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_rows import logits
from tokenlens_kernels import logit_edit
from tokenlens_kernels.logit_edit import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _case(max_edits: int = 150) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(-3, 1005, (6, max_edits), generator=generator)
    ids[3] = torch.randint(0, 40, (max_edits,), generator=generator)
    deltas = torch.randn(6, max_edits, generator=generator)
    deltas[:, ::7] = 0.0
    deltas[2, 1] = -torch.inf
    return {
        "slots": torch.tensor([2, -1, 0, 5, 3, 3, 4, 1, 99]),
        "edit_ids": ids,
        "edit_deltas": deltas,
        "edit_counts": torch.tensor([150, 3, 65, 150, 0, 64]),
        "forced_ids": torch.tensor([-1, 1000, -1, -1, 1001, -1]),
        "vocab_size": 1001,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_naive(dtype: torch.dtype) -> None:
    z = logits(9, 1001, 1009, dtype, seed=2)
    expected, arguments = z.clone(), _case()
    naive.logit_edit(expected, *arguments.values())
    got = z.clone()
    logit_edit(got, **arguments)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_edits_keep_their_bits(dtype: torch.dtype) -> None:
    z = logits(9, 1001, 1009, dtype, seed=2)
    z[:, 5] = -0.0
    got = z.clone()
    logit_edit(got, **_case())
    for row in (1, 6, 8):
        assert got[row].view(torch.uint8).equal(z[row].contiguous().view(torch.uint8))


def test_repeated_ids_get_the_sum_of_their_deltas() -> None:
    z = torch.zeros(1, 10)
    logit_edit(
        z,
        slots=torch.tensor([0]),
        edit_ids=torch.tensor([[4, 7, 4, 4, 2]]),
        edit_deltas=torch.tensor([[1.0, 2.0, 0.5, -3.0, 9.0]]),
        edit_counts=torch.tensor([4]),
        forced_ids=torch.tensor([-1]),
        vocab_size=10,
    )
    assert z[0].tolist() == [0, 0, 0, 0, -1.5, 0, 0, 2.0, 0, 0]


def test_a_forced_token_is_the_only_one_left() -> None:
    z = torch.full((2, 12), -torch.inf)
    z[1] = 1.0
    logit_edit(
        z,
        slots=torch.tensor([0, 1]),
        edit_ids=torch.tensor([[3], [3]]),
        edit_deltas=torch.tensor([[5.0], [5.0]]),
        edit_counts=torch.tensor([1, 1]),
        forced_ids=torch.tensor([3, -1]),
        vocab_size=10,
    )
    assert z[0].softmax(-1).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert z[1].tolist() == [1, 1, 1, 6, 1, 1, 1, 1, 1, 1, 1, 1]


def test_is_in_place_in_a_strided_tensor() -> None:
    storage = logits(9, 1001, 1020, seed=2)
    expected = storage.clone()
    naive.logit_edit(expected[:, :1009], *_case().values())
    logit_edit(storage[:, :1009], **_case())
    torch.testing.assert_close(storage, expected, rtol=0, atol=0, equal_nan=True)


def test_no_rows_and_no_edits() -> None:
    arguments = _case() | {"slots": torch.zeros(0, dtype=torch.int64)}
    logit_edit(torch.zeros(0, 1009), **arguments)
    z = torch.randn(9, 1009)
    same = z.clone()
    empty = _case(max_edits=7) | {"slots": torch.full((9,), -1)}
    logit_edit(z, **empty)
    assert z.equal(same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    z = torch.randn(9, 1009).to(dtype)
    torch.library.opcheck(torch.ops.tokenlens.logit_edit.default, (z, *_case().values()))


def test_compiles_to_one_graph() -> None:
    def step(z: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        z = z * 2
        logit_edit(z, **arguments)
        return z + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    z = torch.randn(9, 1009)
    assert compiled(z, _case()).equal(step(z, _case()))


def test_rejections_name_the_argument_and_what_is_allowed() -> None:
    z = torch.randn(9, 1009)

    def rejected(message: str, z: torch.Tensor = z, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            logit_edit(z, **(_case() | changes))

    rejected(r"logits: got .* dtype torch.float64", z=z.double())
    rejected(r"logits: got a column stride of 9, allowed is 1", z=torch.randn(1009, 9).t())
    rejected(r"vocab_size: got 1010, allowed is 1 to .* 1009", vocab_size=1010)
    rejected(r"slots: got shape \(3,\)", slots=torch.zeros(3, dtype=torch.int64))
    rejected(r"edit_ids: .* dtype torch.int32", edit_ids=torch.zeros(6, 2, dtype=torch.int32))
    rejected(r"edit_deltas: got shape \(6, 2\)", edit_deltas=torch.zeros(6, 2))
    rejected(r"edit_counts: got shape \(5,\)", edit_counts=torch.zeros(5, dtype=torch.int64))
    rejected(r"forced_ids: .* dtype torch.int32", forced_ids=torch.zeros(6, dtype=torch.int32))
