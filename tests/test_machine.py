"""`make test` on machines that lack something: set up, said in a line, or a failure in CI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "mkdir", "touch", "chmod", "cat")
APT = """#!/bin/sh
for name; do case "$name" in
    chromium) touch "$(dirname "$0")/chromium" ;;
    chromium-driver) touch "$(dirname "$0")/chromedriver" ;;
    g++) touch "$(dirname "$0")/g++" ;;
esac; done
chmod +x "${0%/*}"/*
"""


@pytest.fixture
def machine(tmp_path):
    """Run `.ci/machine` on a machine with these programs and no others."""

    def run(*programs, user=1000, apt=False, **environment):
        for name in (*TOOLS, "dirname"):
            (tmp_path / name).symlink_to(shutil.which(name))
        scripts = {"id": f"#!/bin/sh\necho {user}\n", **dict.fromkeys(programs, "#!/bin/sh\n")}
        if apt:
            scripts["apt-get"] = APT
        for name, text in scripts.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        return subprocess.run(
            [ROOT / ".ci" / "machine"],
            env={"PATH": str(tmp_path), **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_what_is_there_is_not_mentioned(machine):
    done = machine("g++", "chromium", "chromedriver", CI="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_can_be_installed_is(machine):
    done = machine(user=0, apt=True, CI="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "g++ chromium chromium-driver" in done.stdout


@pytest.mark.parametrize(("user", "apt"), [(1000, True), (0, False)])
def test_without_a_browser_one_line_says_what_is_skipped(machine, user, apt):
    done = machine("g++", user=user, apt=apt)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "skipped" in done.stderr


def test_in_ci_a_missing_browser_ends_it(machine):
    done = machine("g++", CI="1", TOKENLENS_NO_BROWSER="1")
    assert done.returncode == 1


def test_a_missing_compiler_is_a_sentence(machine):
    done = machine("chromium", "chromedriver")
    assert done.returncode == 1
    assert "apt-get install g++" in done.stderr


def test_make_test_sets_the_machine_up_first():
    text = (ROOT / "Makefile").read_text()
    for name in ("test", "test-main", "test-hf4", "test-vllm", "test-sglang"):
        (line,) = (one for one in text.splitlines() if one.startswith(f"{name}: "))
        assert line.split()[1] == "machine"


@pytest.mark.parametrize("ci", [False, True])
def test_browser_tests_without_a_browser(tmp_path, ci):
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/trace/test_viewer_browser.py", "-k", "notebook"],
        env={**environment, "PATH": str(tmp_path), **({"CI": "1"} if ci else {})},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (1 if ci else 0), done.stdout
    line = "the trace viewer's tests were skipped: no Chromium"
    assert done.stdout.count(line) == (0 if ci else 1)
