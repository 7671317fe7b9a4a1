"""Ten thousand random schedules through the core: no difference from one request alone."""

import pytest
from core_schedules import Batch, make_pool

# Large batches, in which every method is live at once, and small ones, in which few are.
SIZES = [190] * 5 + [5] * 4 + [1] * 30
PARTS = 10


@pytest.fixture(scope="module")
def pools():
    return make_pool(13), make_pool(40)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_schedules_equal_one_request_alone(part, pools):
    assert PARTS * sum(SIZES) >= 10_000
    compared = 0
    for number, size in enumerate(SIZES):
        seed = part * len(SIZES) + number
        # The larger vocabulary has more entries to get wrong, and is slower.
        batch = Batch(seed, size, pools[seed % 4 == 3])
        differences = batch.run()
        assert not differences, "\n".join(differences[:5])
        compared += batch.compared
    print(f"{compared} committed tokens compared")
    assert compared > 3000


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
