"""What this library has to show on a device, in one command: correct, captured, few launches, fast.

Needs nothing but python, torch, Triton, transformers and this repository, and no network; what a
missing package keeps away (pytest, compute-sanitizer) is said, and is not called passed. Writes
``gpu_check_<device>.csv`` (one line a fact) and ``gpu_check_<device>.md`` (a page). Ends with 1 if
something failed. On a CPU (``--device cpu``) all is exercised that a device is not needed for, with
small sizes: the kernels under Triton's interpreter, a traced step in the place of a captured one.

    python benchmarks/gpu_check.py [--device cuda] [--engine hf|vllm|sglang] [--output DIR]
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parent
TESTS = ROOT / "tests"
sys.path[:0] = [str(ROOT / "tests" / "conformance"), str(ROOT / "benchmarks")]

PASSED, FAILED, SKIPPED = "passed", "FAILED", "not run"


@dataclass
class Check:
    """One section: what was found, as lines of a table."""

    name: str
    outcome: str = PASSED
    seconds: float = 0.0
    lines: list[tuple[str, str]] = field(default_factory=list)

    def say(self, what: str, value: object) -> None:
        self.lines.append((what, str(value)))


class NotRunError(Exception):
    """This machine lacks what a check needs."""


def ran(command: list[str], seconds: float, **environment: str) -> str:
    """The output of a command of ours; raises what it ended with."""
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
        | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if result.returncode:
        raise RuntimeError((result.stdout + result.stderr)[-3000:])
    return result.stdout


def kernels(check: Check, device: str) -> None:
    """The Triton kernels against their naive versions."""
    if importlib.util.find_spec("pytest") is None:
        raise NotRunError("pytest is not installed")
    cases = ["-m", "pytest", "-q", "--no-header", str(TESTS / "kernels" / "triton_cases.py")]
    if device == "cpu":
        few = "few_launches or column_of_a_table or deltas_of_a_whole_row or around_the_tiles"
        output = ran([sys.executable, *cases, "-k", few], 170, TRITON_INTERPRET="1")
    else:
        output = ran([sys.executable, *cases], 300, TRITON_INTERPRET="0")
    check.say("tests", re.findall(r"\d+ passed.*|\d+ failed.*", output)[-1:] or "all")


def sanitizer(check: Check, device: str) -> None:
    """NVIDIA's memory checker over the kernel tests."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or device == "cpu":
        raise NotRunError("compute-sanitizer is not installed" if tool is None else "no device")
    few = ["-k", "small_vocabulary or few_launches or test_mixture or logit_edit"]
    cases = [sys.executable, "-m", "pytest", "-q", str(TESTS / "kernels" / "triton_cases.py"), *few]
    ran([tool, "--error-exitcode", "9", *cases], 300, TRITON_INTERPRET="0")
    check.say("memcheck", "no error")


def conformance(check: Check, device: str) -> None:
    """The conformance table through ``generate()``: each way of a device against the CPU's ids."""
    import transformers
    from conformance_models import save
    from conformance_table import MARKERS, SCENARIOS

    from tokenlens.hf import generate_kwargs

    with tempfile.TemporaryDirectory() as folder:
        path = save("qwen3", Path(folder))
        reference = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        model = transformers.AutoModelForCausalLM.from_pretrained(path).eval().to(device)
    rows = [one for one in SCENARIOS if one.greedy]
    ways: dict[str, dict[str, Any]] = {"eager": {}, "static cache": {}}
    if device == "cpu":
        rows, ways = rows[:6], {"eager": {}}
    else:
        # A static cache on a device is compiled by generate() itself, with CUDA graphs.
        ways["static cache"] = {"cache_implementation": "static"}

    def ids_of(model: Any, scenario: Any, **settings: Any) -> list[int]:
        ids = torch.tensor([scenario.prompt], device=model.device)
        spec = scenario.spec(MARKERS)
        kwargs = {} if spec is None else generate_kwargs(model, None, spec)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=scenario.tokens,
            **scenario.sampling,
            **settings,
            **kwargs,
        )
        found: list[int] = output[0, ids.shape[1] :].tolist()
        return found

    wrong = []
    expected = {one.name: ids_of(reference, one) for one in rows}
    for way, settings in ways.items():
        some = rows if way == "eager" else rows[:6]
        same = [ids_of(model, one, **settings) == expected[one.name] for one in some]
        wrong += [f"{way}: {one.name}" for one, equal in zip(some, same, strict=True) if not equal]
        check.say(f"{way}: rows with the CPU's ids", f"{sum(same)} of {len(same)}")
    if wrong:
        raise RuntimeError("other ids than on a CPU: " + ", ".join(wrong))


def compiled(check: Check, device: str) -> None:
    """Forms of the step, compared with the eager step when they are made."""
    import launches

    from tokenlens.core import Core
    from tokenlens.core.compiled import Forms, inductor
    from tokenlens.methods import METHODS

    names = list(dict(launches.compositions()))
    names = [launches.HEADLINE] if device == "cpu" else names[: names.index(launches.HEADLINE) + 2]
    forms = Forms((lambda graph, inputs: graph) if device == "cpu" else inductor)
    core = Core(
        methods=METHODS,
        max_slots=8,
        vocab_size=launches.VOCAB,
        device=device,
        engine_vectors=launches.Vectors(),
    )
    made = {}
    for name in names:
        request = launches.request_of(dict(launches.compositions())[name])
        began = time.perf_counter()
        made[name] = forms.warm(core, [request], launches.VOCAB, torch.float32)
        check.say(f"form of {name}: seconds", round(time.perf_counter() - began, 2))
    check.say("forms that give the eager step's numbers", f"{sum(made.values())} of {len(made)}")
    if not all(made.values()):
        raise RuntimeError("stay eager: " + ", ".join(n for n, fine in made.items() if not fine))


def captured(check: Check, device: str) -> None:
    """A step and its commit captured in a graph and replayed, against the eager ones."""
    import launches

    from tokenlens.core import Core
    from tokenlens.core.swap import tensors_of
    from tokenlens.methods import METHODS

    if device == "cpu":
        raise NotRunError("no graphs to capture on a CPU; the section before replays a traced step")
    wrong = []
    for name, methods in dict(launches.compositions()).items():
        if name.startswith("row ") or name in ("coconut", "latent_mas"):
            continue
        request = launches.request_of(methods)
        cores = []
        for _ in range(2):
            core = Core(
                methods=METHODS, max_slots=4, vocab_size=launches.VOCAB, device=device,
                engine_vectors=launches.Vectors(),
            )  # fmt: skip
            core.forms = None
            for slot in range(4):
                core.add(slot, request, [launches.START])
            cores.append(core)
        eager, ours = cores
        slots = torch.arange(4, device=device)
        logits = torch.zeros(4, launches.VOCAB, device=device)
        sampled = torch.zeros(4, dtype=torch.int64, device=device)
        advance = torch.ones(4, dtype=torch.bool, device=device)
        # Kernels are compiled, and what is kept is made, on a step that is taken back.
        before = [tensor.clone() for tensor in tensors_of(ours).values()]
        ours.step(logits, slots)
        ours.commit(sampled, slots, advance)
        for tensor, old in zip(tensors_of(ours).values(), before, strict=False):
            tensor.copy_(old)
        graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[0]):
            edited = ours.step(logits, slots)
        with torch.cuda.graph(graphs[1]):
            ours.commit(sampled, slots, advance)
        same = True
        for seed in range(6):
            torch.manual_seed(seed)
            logits.copy_(torch.randn(4, launches.VOCAB) * 4)
            graphs[0].replay()
            expected = eager.step(logits.clone(), slots)
            sampled.copy_(expected.argmax(dim=1))
            graphs[1].replay()
            eager.commit(sampled.clone(), slots, advance)
            same = same and edited.equal(expected)
            same = same and ours.table.ints[:4].equal(eager.table.ints[:4])
        if not same:
            wrong.append(name)
    check.say("methods whose replay is the eager step", "all" if not wrong else f"not: {wrong}")
    if wrong:
        raise RuntimeError(f"replays differ: {wrong}")


def launch_counts(check: Check, device: str, folder: Path) -> None:
    """``benchmarks/launches.py``: by the profiler where there is a device."""
    command = [sys.executable, str(HERE / "launches.py"), "--csv", str(folder / "launches.csv")]
    if device == "cpu":
        command += ["--only", "soft_thinking + cold stop + gumbel_noise"]
    else:
        command += ["--device", device]
    output = ran(command, 300)
    for name, ours, eager in re.findall(r"^\| (.+?) \| (\d+) \| \d+ \| (\d+) \|$", output, re.M):
        check.say(f"launches of {name}: compiled / eager", f"{ours} / {eager}")


def kernel_times(check: Check, device: str, folder: Path) -> None:
    """``benchmarks/kernels.py``."""
    few = [
        "--batch",
        "1",
        "--vocab",
        "32000",
        "--hidden",
        "256",
        "--entries",
        "10",
        "--budget",
        "5",
    ]
    if device != "cpu":
        few = ["--batch", "1", "8", "64", "--vocab", "151936", "--hidden", "4096", "--budget", "90"]
    output = folder / "kernels.csv"
    more = ["--seconds", "0.2", "--rounds", "2", "--output", str(output)]
    ran([sys.executable, str(HERE / "kernels.py"), *few, *more], 240)
    with output.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = f"{row['stage']}, {row['implementation']}, batch {row['batch']}: us"
            check.say(name, row["q50_us"])


def decode_times(check: Check, device: str, folder: Path) -> None:
    """``benchmarks/hf_decode.py`` at batch 1, 8 and 32."""
    if importlib.util.find_spec("rich") is None:
        raise NotRunError("rich is not installed")
    small = ["--hidden", "128", "--layers", "2", "--steps", "8", "--rounds", "1", "--batches", "1"]
    command = [sys.executable, str(HERE / "hf_decode.py"), "--device", device]
    output = ran([*command, *(small if device == "cpu" else ["--rounds", "2"])], 300)
    check.say("milliseconds per decode step", "\n" + output)


def engine_tests(check: Check, engine: str) -> None:
    """An engine's own tests, on its device."""
    if importlib.util.find_spec(engine) is None:
        raise NotRunError(f"{engine} is not installed")
    output = ran([sys.executable, "-m", "pytest", "-q", "-x", str(TESTS / engine)], 560)
    check.say("tests", re.findall(r"\d+ passed.*", output)[-1:])


def run(checks: dict[str, Callable[[Check], None]]) -> list[Check]:
    """Every check, whatever becomes of the others."""
    done = []
    for name, function in checks.items():
        check = Check(name)
        began = time.perf_counter()
        try:
            function(check)
        except NotRunError as reason:
            check.outcome = SKIPPED
            check.say("why", reason)
        except Exception as error:
            check.outcome = FAILED
            check.say("error", str(error).strip()[-1500:] or type(error).__name__)
            traceback.print_exc()
        check.seconds = time.perf_counter() - began
        print(f"{name}: {check.outcome} in {check.seconds:.0f} s", flush=True)
        done.append(check)
    return done


def describe(device: str) -> dict[str, str]:
    """The machine, for the head of the page."""
    names = {"device": device if device == "cpu" else torch.cuda.get_device_name()}
    for package in ("torch", "triton", "transformers", "vllm", "sglang"):
        if importlib.util.find_spec(package) is not None:
            from importlib.metadata import PackageNotFoundError, version

            try:
                names[package] = version(package)
            except PackageNotFoundError:
                names[package] = "?"
    return names | {"python": platform.python_version(), "machine": platform.machine()}


def write(checks: list[Check], machine: dict[str, str], folder: Path) -> Path:
    """The table and the page; returns the page."""
    name = re.sub(r"[^a-z0-9]+", "_", machine["device"].lower()).strip("_")
    with (folder / f"gpu_check_{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["check", "outcome", "seconds", "what", "value"])
        for check in checks:
            for what, value in check.lines or [("", "")]:
                writer.writerow([check.name, check.outcome, round(check.seconds), what, value])
    lines = ["# GPU check", "", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["| check | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {check.name} | {check.outcome} | {check.seconds:.0f} |" for check in checks]
    for check in checks:
        lines += ["", f"## {check.name}", ""]
        lines += [f"* {what}: {value}" for what, value in check.lines]
    page = folder / f"gpu_check_{name}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--engine", default="hf", choices=["hf", "vllm", "sglang"])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-check")
    arguments = parser.parse_args()
    device, folder = arguments.device, arguments.output
    if device == "cuda" and not torch.cuda.is_available():
        print("device: got cuda, and torch finds none; allowed: a machine with an NVIDIA GPU and a")
        print("build of torch for it, or --device cpu")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    # A cache of its own: a compiler that was stopped may have left half a file in the common one.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.resolve() / "inductor"))
    checks: dict[str, Callable[[Check], None]] = {
        "kernels against their naive versions": lambda check: kernels(check, device),
        "compiled steps against eager ones": lambda check: compiled(check, device),
        "replay of a captured step": lambda check: captured(check, device),
        "Hugging Face conformance": lambda check: conformance(check, device),
        "launches": lambda check: launch_counts(check, device, folder),
        "times of the kernels": lambda check: kernel_times(check, device, folder),
        "times of generate()": lambda check: decode_times(check, device, folder),
        "compute-sanitizer": lambda check: sanitizer(check, device),
    }
    if arguments.engine != "hf":
        checks = {f"tests of {arguments.engine}": lambda c: engine_tests(c, arguments.engine)}
    done = run(checks)
    page = write(done, describe(device), folder)
    print(page.read_text(encoding="utf-8"))
    return 1 if any(check.outcome == FAILED for check in done) else 0


if __name__ == "__main__":
    sys.exit(main())
