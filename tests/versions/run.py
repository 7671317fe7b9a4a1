"""Run an engine's tests on one release after the other and write the table: ``make test-versions``.

    python tests/versions/run.py vllm sglang hf
    python tests/versions/run.py hf --releases 5.8.1 5.23.0

Each release is unpacked in front of the engine's environment, tried, and deleted again. What it
finds is written after every release, so that a run that is cut off is not lost.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import overlays
from rich.progress import Progress

from tokenlens import versions

ROOT = Path(__file__).parents[2]

RELEASES = {
    "hf": [
        *("4.57.6", "5.0.0", "5.1.0", "5.2.0", "5.3.0", "5.4.0", "5.5.4", "5.6.2", "5.7.0"),
        *("5.8.1", "5.9.0", "5.10.4", "5.11.0", "5.12.1", "5.13.1", "5.14.1", "5.15.1"),
        *("5.16.1", "5.17.0", "5.18.0", "5.19.0", "5.20.2", "5.21.1", "5.22.2", "5.23.0"),
        "5.24.0",
    ],
    "vllm": ["0.31.0", "0.32.0", "0.33.0"],
    "sglang": ["0.5.21", "0.5.22", "0.5.23"],
}
"""The newest of each minor release; of SGLang the last three."""


_VLLM, _SGLANG = "tests/vllm/test_vllm_", "tests/sglang/test_sglang_"

TESTS = {
    "hf": [
        f"tests/hf/test_hf_{name}.py"
        for name in ("tiny_reasoner", "latent_family", "features", "refusals", "plain")
    ],
    "vllm": [
        f"{_VLLM}engines.py::test_first_runner_gives_the_reference_ids[sync]",
        f"{_VLLM}engines.py::test_first_runner_gives_the_reference_ids[preempted]",
        f"{_VLLM}engines.py::test_second_runner_gives_the_reference_ids[sync]",
        f"{_VLLM}engines.py::test_the_tiny_reasoner",
        f"{_VLLM}engines.py::test_requests_without_a_spec_are_bit_identical",
        f"{_VLLM}traces.py",
        f"{_VLLM}server.py",
    ],
    "sglang": [
        f"{_SGLANG}engines.py::test_overlap_gives_the_reference_ids",
        f"{_SGLANG}engines.py::test_the_tiny_reasoner_and_methods_that_need_words[]",
        f"{_SGLANG}engines.py::test_forced_retractions_change_nothing",
        f"{_SGLANG}engines.py::test_requests_without_a_spec_are_bit_identical",
        f"{_SGLANG}engines.py::test_rows_without_a_spec_are_untouched_beside_those_with_one[overlap]",
        f"{_SGLANG}traces.py::test_every_step_is_the_references[]",
        f"{_SGLANG}server.py",
    ],
}
"""What is run on each release, in minutes: the table, traces, rows without a spec, the server."""

VENVS = {"hf": ".venv", "vllm": ".venv-vllm", "sglang": ".venv-sglang"}
BEFORE_5 = ".venv-hf4"


def run(engine, release, folder, options):
    """How many tests passed, and which did not."""
    venv = BEFORE_5 if engine == "hf" and versions.numbers(release) < (5,) else VENVS[engine]
    python = str(ROOT / venv / "bin" / "python")
    code = "import sys; from tokenlens import versions; print(versions.installed(sys.argv[1]))"
    found = subprocess.run([python, "-c", code, engine], capture_output=True, text=True, check=True)
    path = [ROOT, ROOT / "kernels"]
    if versions.numbers(found.stdout) != versions.numbers(release):
        path.insert(0, overlays.build(engine, release, python, folder))
    report = Path(folder) / f"{engine}-{release}.xml"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "TOKENLENS_TESTS_ON_ANY_VERSION": "1",
        **dict.fromkeys(versions.OVERRIDE.values(), "1"),
    }
    command = [python, "-m", "pytest", "-q", f"--junitxml={report}", *TESTS[engine], *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if not report.exists():
        return {"passed": 0, "failed": 1, "first": (done.stdout + done.stderr)[-300:]}
    return read(report)


def read(report):
    """Counts of a JUnit report, and the names of what failed."""
    cases = ET.parse(report).getroot().iter("testcase")
    passed, failed = 0, []
    for case in cases:
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed.append(f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}")
        elif "skipped" not in kinds:
            passed += 1
    # A run in which nothing passed has tested nothing.
    result = {"passed": passed, "failed": len(failed) if passed else max(1, len(failed))}
    return {**result, "first": failed[0]} if failed else result


PAGES = ("README.md", "docs/install.md", "docs/vllm.md", "pyproject.toml")
"""Where the table is repeated."""


def _repeated(engine):
    return versions.supported(engine), versions.extra(engine), versions.markdown()


def write(engine, release, result):
    """Put a release into the table, and into what repeats it."""
    before = _repeated(engine)
    table = json.loads(versions.FILE.read_text())
    table[engine][release] = result
    ordered = {
        name: {one: table[name][one] for one in sorted(table[name], key=versions.numbers)}
        for name in table
    }
    versions.FILE.write_text(json.dumps(ordered, indent=1) + "\n")
    versions.table.cache_clear()
    pairs = list(zip(before, _repeated(engine)))
    for page in PAGES:
        text = (ROOT / page).read_text()
        for old, new in pairs:
            text = text.replace(old, new)
        (ROOT / page).write_text(text)


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+", choices=list(RELEASES))
    parser.add_argument("--releases", nargs="*", help="only these")
    words = "what follows goes to pytest, and nothing to the table: it may be a part of the tests"
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help=words)
    given = parser.parse_args()
    work = [
        (engine, release)
        for engine in given.engines
        for release in given.releases or RELEASES[engine]
    ]
    bad = 0
    with Progress() as progress:
        task = progress.add_task("releases", total=len(work))
        for engine, release in work:
            progress.update(task, description=f"{versions.NAMES[engine]} {release}")
            folder = tempfile.mkdtemp(prefix="versions-")
            try:
                result = run(engine, release, folder, given.pytest)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if not given.pytest:
                write(engine, release, result)
            progress.console.print(f"{versions.NAMES[engine]} {release}: {result}")
            bad += bool(result["failed"])
            progress.advance(task)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
