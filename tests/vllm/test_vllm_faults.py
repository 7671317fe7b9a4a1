"""What goes wrong with one request stays with it, on the real engine with both model runners."""

import pytest
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.mark.parametrize("runner", ["first_runner", "second_runner"])
def test_what_goes_wrong_with_one_request_stays_with_it(request, runner):
    job = request.getfixturevalue(runner)["faults"]
    alone, before, together, after = (run["outputs"] for run in job["runs"])
    for name in ("not-admitted", "not-decided"):
        assert together[name]["finish_reason"] == "error"
    for name in ("plain", "soft"):
        assert together[name]["ids"] == alone[f"{name}-alone"]["ids"]
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}
    # Without its bounds the wild one makes no mixture: all its steps are invalid and plain.
    counts = together["wild"]["trace"]["counts"]
    assert counts["invalid_steps"] == counts["tokens"] == 20
    assert counts["latent_steps"] == 0
    assert together["wild"]["ids"] == together["plain"]["ids"]
    # In the blocks that it had, nothing is left that harms others.
    assert len(after) == 4
    for name, one in after.items():
        assert one["ids"] == before[f"{name}-before"]["ids"]
