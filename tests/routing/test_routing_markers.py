"""The end of thinking in a step, whatever the vocabulary has merged it with."""

import pytest
from real_vocabularies import load

from tokenlens.routing.settings import RoutingSpec
from tokenlens.routing.vocabulary import Matcher, RouterVocabulary, StepEnds


@pytest.fixture(scope="module")
def llama():
    return RouterVocabulary(load("llama3_1"))


@pytest.mark.parametrize("before", ["it is 5", "it is 5.", "it is **5**", "so (5)", 'x < 5"'])
@pytest.mark.parametrize("behind", ["", "\n", "\n\nThe", ".", ">", "a"])
@pytest.mark.parametrize("written", [0, 1, 3])
def test_the_end_is_seen_at_its_last_token(llama, before, behind, written):
    spec = RoutingSpec.model_validate({"policy": {"policy": "always_small"}})
    matcher = Matcher(StepEnds.of(spec, llama), llama)
    ids = llama.encode(f"{before}</think>{behind}")
    # The other model has written the first of them.
    matcher.read(llama.decode(ids[:written]))
    found = [matcher.push(token) for token in ids[written:]]
    at = next(i for i in range(len(ids)) if "</think>" in llama.decode(ids[: i + 1]))
    assert found[: at + 1 - written] == [None] * (at - written) + ["think_end"]
