"""Ten thousand random schedules through the core: no difference from one request alone."""

import pytest
from core_schedules import Batch, make_pool

SCHEDULES_A_BATCH = 100
BATCHES = 100


@pytest.fixture(scope="module")
def pools():
    return make_pool(13), make_pool(40)


@pytest.mark.slow
def test_ten_thousand_schedules_equal_one_request_alone(pools):
    assert SCHEDULES_A_BATCH * BATCHES >= 10_000
    compared = 0
    for seed in range(BATCHES):
        # The larger vocabulary has more than one tile of weights to get wrong, and is slower.
        batch = Batch(seed, SCHEDULES_A_BATCH, pools[seed % 4 == 3])
        differences = batch.run()
        assert not differences, "\n".join(differences[:5])
        compared += batch.compared
    print(f"{compared} committed tokens compared")
    assert compared > 50_000


@pytest.mark.parametrize(
    "fault",
    [
        "slots in the old order",
        "noise of the row",
        "everything advances",
        "slots not emptied",
    ],
)
def test_a_planted_fault_is_found(fault, pools):
    differences = [d for seed in range(3) for d in Batch(seed, 20, pools[0], fault).run()]
    assert differences
