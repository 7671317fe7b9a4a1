"""Pages for people: what they print is true, and what they tell to run runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import outside
import pytest
from guide_commands import command_of

from tokenlens import parse_spec, reference
from tokenlens.serving.settings import Settings
from tokenlens.spec.registry import METHOD_CONFIGS, models_of

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
MODELS = {model for config in METHOD_CONFIGS.values() for model in models_of(config)}


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page, start):
    """Lines of fenced blocks that call the command line."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith(start)]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_top_to_bottom(page, tmp_path):
    code = "\n".join(snippets(page))
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_reference_of_methods_is_what_the_configs_say():
    page = ROOT / "docs" / "reference" / "methods.md"
    assert page.read_text() == reference.markdown(), "python -m tokenlens.reference > " + str(page)


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_method_has_a_section_with_all_its_fields(name):
    section = reference.markdown().split(f"\n## {name}\n")[1].split("\n## ")[0]
    for field in METHOD_CONFIGS[name].model_fields.keys() - {"method", "profile", "quirks"}:
        assert f"| `{field}` |" in section
    quirks = METHOD_CONFIGS[name].quirks_model()
    assert ("In `quirks`:" in section) == (quirks is not None)
    for field in quirks.model_fields if quirks else ():
        assert f"| `{field}` |" in section.split("In `quirks`:")[1]


@pytest.mark.parametrize(
    "config", [*METHOD_CONFIGS.values(), *sorted(MODELS, key=lambda model: model.__name__)]
)
def test_every_field_says_what_it_means(config):
    assert [row.name for row in reference.rows(config) if not row.meaning] == []


def test_the_first_commands_of_the_install_page_run(tmp_path):
    found = commands(ROOT / "docs" / "install.md", "tokenlens ")
    assert len(found) == 3
    for command in found:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "tokenlens"), *shlex.split(command)[1:]],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_the_readme_is_short_and_says_first_how_to_install():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 170
    assert lines.index("## Install") < 25


def test_the_settings_of_the_guide_s_server_let_its_method_in():
    words = command_of("vllm.entrypoints.openai.api_server", "M")
    given = json.loads(words[words.index("--additional-config") + 1])
    assert words[words.index("--logits-processors") + 1] == "tokenlens.vllm:TokenLens"
    with outside.let_in():
        settings = Settings.of(given)
        settings.check(parse_spec({"methods": [{"method": "pulse_gate"}]}))


def test_every_method_of_a_paper_names_it():
    controls = {"no_thinking", "answer_now", "thinking_budget", "static_window", "random_route"}
    unsourced = [
        name
        for name in METHOD_CONFIGS
        if "arXiv" not in reference.markdown().split(f"\n## {name}\n")[1].split("\n## ")[0]
    ]
    assert set(unsourced) <= {*controls, "top1", "tripwire"}


def test_a_group_of_fields_is_a_link_to_them():
    section = reference.markdown().split("\n## lead\n")[1].split("\n## ")[0]
    for group in ("Gate", "Blend", "SwitchControl"):
        assert f"[{group}](#{group.lower()})" in section
        assert f"\n## {group}\n" in reference.markdown()
