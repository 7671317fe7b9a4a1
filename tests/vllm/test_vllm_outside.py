"""Methods from outside on both runners: what goes wrong in one stays with its request.

That they give Hugging Face's ids and traces is in the table of scenarios, whose engines let the
example's methods in.
"""

import faulty_method as faulty
import pytest
from conformance_table import OUTSIDE
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]
RUNNERS = pytest.mark.parametrize("runner", ["first_runner", "second_runner"])


@RUNNERS
def test_the_examples_methods_run(request, runner, reference):
    run = request.getfixturevalue(runner)["sync"]["runs"][0]["outputs"]
    for name in OUTSIDE:
        assert run[name]["ids"] == reference["qwen3"][name]
        counts = run[name]["trace"]["counts"]
        assert 0 < counts["latent_steps"] <= counts["tokens"]
    pulse = run["pulse-gate"]["trace"]["counts"]
    assert pulse["latent_steps"] < pulse["thinking_tokens"]


@RUNNERS
def test_whatever_goes_wrong_harms_no_other_request(request, runner):
    job = request.getfixturevalue(runner)["faulty"]
    assert "error" not in job, job
    alone, together = job["runs"]
    outputs = together["outputs"]
    for name in ("soft", "pulse", "ends", "plain"):
        for i in range(5):
            assert outputs[f"{name}/{i}"]["ids"] == alone["outputs"][name]["ids"], (name, i)
    for fault in faulty.REFUSED:
        assert "faulty" in together["errors"][fault]
    for fault in faulty.ENDED:
        assert outputs[fault]["finish_reason"] == "error", fault
        hook = (faulty.RAISES | faulty.WRONG)[fault]
        reason = outputs[fault]["stop_reason"]
        assert "the method faulty of this request" in reason
        assert f"in its hook {hook}" in reason
        assert "/a/path" not in reason
    for fault in (*faulty.INVALID, *faulty.GREEDY):
        assert outputs[fault]["finish_reason"] in ("length", "stop"), fault
        counts = outputs[fault]["trace"]["counts"]
        assert counts["others"]["faulty_steps"] == counts["tokens"] == 6, fault
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}
