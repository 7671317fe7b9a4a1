"""The CPU's own noise, against the one that every other backend draws."""

from typing import Any

import numpy as np
import torch
from tokenlens_kernels import philox
from tokenlens_kernels.signals_topk import entries

SEEDS = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, -1, -(2**63)]


def test_the_noise_is_bit_for_bit_that_of_philox() -> None:
    seed = torch.tensor(SEEDS)[:, None]
    ids = torch.randint(0, philox.MAX_INDEX, (len(SEEDS), 501), generator=torch.manual_seed(0))
    counter = philox.offset(torch.tensor([[0], [1], [7], [2**31 - 1], [5], [2**20], [9]]), ids)
    found = entries.gumbel(seed.numpy(), counter.numpy())
    expected = philox.gumbel(seed, counter).numpy()
    assert (found.view(np.int32) == expected.view(np.int32)).all()


def test_entries_without_mass_change_nothing_however_many_follow() -> None:
    p = np.sort(np.random.default_rng(0).random((9, 13)))[:, ::-1] / 13
    longer = np.concatenate([p, np.zeros((9, 50))], axis=1)
    ids = np.tile(np.arange(63), (9, 1))

    def cut(p: Any) -> Any:
        ones, zeros = np.ones((9, 1), dtype=np.float32), np.zeros((9, 1), dtype=np.float32)
        eleven, seed = np.full((9, 1), 11), np.zeros((9, 1), dtype=np.int64)
        limit = np.full((9, 1), p.shape[1])
        plan = entries.Plan([ones, limit, ones, zeros, eleven, zeros, seed], 63)
        return plan.cut(p, ids[:, : p.shape[1]])[0]

    found, short = cut(longer), cut(p)
    assert (found[:, :13] == short).all()
    assert (short[:, 11:] == 0).all()
