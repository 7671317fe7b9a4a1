"""Every composition's launches on a device, counted on ``meta``, against its line in the page."""

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import launches  # noqa: E402

COMPOSITIONS = dict(launches.compositions())
PAGE = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
TABLE = PAGE.partition(launches.BEGIN)[2].partition(launches.END_MARK)[0]
# The last column is the eager count.
CEILINGS = {name: int(n) for name, n in re.findall(r"^\| (.+?) \|.* (\d+) \|$", TABLE, re.M)}
DEAREST = (launches.HEADLINE, "s1", "alpha_one", "swi_reasoning + switch control")
"""Compositions whose compiled form is counted here; ``benchmarks/launches.py`` counts them all."""


def test_the_page_has_every_composition_and_no_other():
    assert list(CEILINGS) == list(COMPOSITIONS)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_step_launches_no_more_than_the_page_says(name):
    found = launches.count(COMPOSITIONS[name])
    assert len(found) <= CEILINGS[name], sorted(found)


@pytest.mark.parametrize("name", DEAREST)
def test_a_compiled_step_stays_beneath_its_ceiling(name):
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    found = launches.count_compiled(COMPOSITIONS[name], launches.Lowered())
    assert 5 < len(found) <= launches.ceiling_of(name), sorted(found)


def test_launches_do_not_depend_on_the_batch():
    methods = COMPOSITIONS["lead"]
    assert launches.count(methods, 2) == launches.count(methods, 7)


@pytest.mark.parametrize(("name", "most"), [("nowait", 63), ("answer_now", 71), ("s1", 73)])
def test_three_drafts_add_no_more_than_the_page_says(name, most):
    alone, drafted = launches.count_drafted(COMPOSITIONS[name], 3)
    assert 0 < drafted - 4 * alone <= most


def test_an_op_more_in_a_hook_is_found(monkeypatch):
    from tokenlens.methods.soft_thinking.step import SoftThinkingMethod

    propose = SoftThinkingMethod.propose

    def dearer(self, rows, signals, proposal):
        propose(self, rows, signals, proposal)
        proposal.latent = proposal.latent & torch.ones_like(proposal.latent)

    monkeypatch.setattr(SoftThinkingMethod, "propose", dearer)
    found = launches.count(COMPOSITIONS["soft_thinking"])
    assert len(found) > CEILINGS["soft_thinking"]
