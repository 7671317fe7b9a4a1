"""The table of tested releases, and everybody who repeats it."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenlens import capabilities, versions

ROOT = Path(__file__).parents[1]
ENGINES = list(versions.NAMES)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_table_has_releases_on_which_everything_passed(engine):
    assert versions.tested(engine)
    for release in versions.tested(engine):
        assert versions.table()[engine][release]["passed"]
        assert versions.problem(engine, release) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_the_extra_of_the_package_is_the_table_s_range(engine):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"][engine][0] == versions.extra(engine)


def test_the_pages_name_the_releases():
    for page in ("README.md", "docs/install.md"):
        text = " ".join((ROOT / page).read_text().split())
        for engine in ENGINES:
            assert versions.supported(engine) in text, page
    assert versions.supported("vllm") in (ROOT / "docs" / "vllm.md").read_text()
    assert versions.markdown() in (ROOT / "docs" / "install.md").read_text()
    assert {engine: versions.supported(engine) for engine in ENGINES} == capabilities.TESTED


def test_every_environment_has_the_torch_that_the_doctor_names():
    pinned = [
        line
        for file in (ROOT / "constraints").iterdir()
        for line in file.read_text().splitlines()
        if line.startswith("torch==")
    ]
    assert pinned
    assert {line.removeprefix("torch==").rpartition(".")[0] for line in pinned} == {versions.TORCH}
    for page in ("README.md", "docs/install.md"):
        assert f"torch {versions.TORCH}" in (ROOT / page).read_text()


@pytest.mark.parametrize("engine", versions.OVERRIDE)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from(["", "+cpu", "rc1"]))
def test_any_other_release_is_refused_with_the_nearest(engine, parts, rest):
    found = ".".join(map(str, parts)) + rest
    problem = versions.problem(engine, found)
    if versions.is_tested(engine, found):
        assert problem is None
        return
    nearest = versions.nearest(engine, found)
    assert nearest in versions.tested(engine)
    assert f"got version {found}" in problem
    assert nearest in problem
    assert versions.OVERRIDE[engine] in problem
    newer = [one for one in versions.tested(engine) if versions.numbers(one) > tuple(parts)]
    assert nearest == (newer[0] if newer else versions.tested(engine)[-1])


@pytest.mark.parametrize("found", [None, "", "abc", "v1", "dev"])
@pytest.mark.parametrize("engine", versions.OVERRIDE)
def test_what_is_no_version_is_refused(engine, found):
    assert "got version" in versions.problem(engine, found)


@pytest.mark.parametrize("engine", versions.OVERRIDE)
def test_the_operator_may_go_on(engine, monkeypatch):
    monkeypatch.setenv(versions.OVERRIDE[engine], "1")
    assert versions.problem(engine, "99.0") is None


def spoken(engine, text):
    """The releases of a table that a text names, itself or between two in a row."""
    named = text.removeprefix(versions.NAMES[engine]).replace(" and ", ", ").split(",")
    every = sorted(versions.table()[engine], key=versions.numbers)
    found = set()
    for first, _, last in (word.strip().partition(" to ") for word in named):
        found.update(every[every.index(first) : every.index(last or first) + 1])
    return found


@pytest.mark.parametrize("engine", ENGINES)
@given(
    st.dictionaries(st.integers(0, 12), st.booleans(), min_size=1).filter(lambda d: any(d.values()))
)
def test_a_range_holds_no_release_that_did_not_pass(engine, results):
    head = "0.5." if engine == "sglang" else "5."
    tail = "" if engine == "sglang" else ".1"
    table = {
        f"{head}{minor}{tail}": {"passed": 1, "failed": int(not passed)}
        for minor, passed in results.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "table", lambda: {engine: table})
        text = versions.supported(engine)
        assert spoken(engine, text) == set(versions.tested(engine))
        # Nor one that was not run: what stands between two is all there.
        for first, last in re.findall(r"([\d.]+) to ([\d.]+)", text):
            place = versions._SERIES[engine] - 1
            low, high = versions.numbers(first)[place], versions.numbers(last)[place]
            assert all(results.get(minor) for minor in range(low, high + 1))


def test_a_release_with_a_failure_is_not_tested(monkeypatch):
    table = {"vllm": {"0.32.0": {"passed": 3, "failed": 0}, "0.40.0": {"passed": 3, "failed": 1}}}
    monkeypatch.setattr(versions, "table", lambda: table)
    assert versions.tested("vllm") == ("0.32.0",)
    assert "got version 0.40.0" in versions.problem("vllm", "0.40.0")
