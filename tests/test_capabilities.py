"""The table of what works where follows from what engines host and methods need."""

from typing import ClassVar, Literal

import outside
import pytest
from typer.testing import CliRunner

from tokenlens import capabilities, parse_spec
from tokenlens.cli import app
from tokenlens.cli.doctor import let_in
from tokenlens.methods import Method, Need, method
from tokenlens.serving.settings import Settings
from tokenlens.sglang import refusals as sglang
from tokenlens.spec import METHOD_CONFIGS, MethodBase, SpecError
from tokenlens.spec.installed import installed
from tokenlens.vllm import refusals as vllm

ADAPTERS = {"vllm": vllm, "sglang": sglang}
ROWS = {row.name: row for row in capabilities.methods()}


class Listens(MethodBase):
    """Reads the model's last hidden state."""

    family: ClassVar[tuple[str, ...]] = ("latent",)
    method: Literal["listens"] = "listens"

    def needs(self):
        return {Need.HIDDEN_STATE: ("method", self.method, "pulse_gate")}


@method(Listens, after="soft_thinking")
class ListensMethod(Method):
    """Does nothing with it."""

    def __init__(self):
        super().__init__("listens")


class Follows(MethodBase):
    """Nothing."""

    method: Literal["follows"] = "follows"


@pytest.fixture(autouse=True)
def _looked_up_again():
    installed.cache_clear()  # packages are put on the path below
    yield
    installed.cache_clear()


@pytest.fixture
def doctor(monkeypatch):
    """The report, with methods from outside allowed."""

    def run(*names):
        monkeypatch.setenv("COLUMNS", "300")
        return CliRunner().invoke(app, ["doctor"], env={"TOKENLENS_METHODS": ",".join(names)})

    return run


def test_there_is_a_row_for_every_method():
    assert list(ROWS) == list(METHOD_CONFIGS)
    statuses = {status for row in ROWS.values() for status in row.cells.values()}
    assert "yes" in statuses <= {"yes", "refused"}


@pytest.mark.parametrize("lends", [True, False])
@pytest.mark.parametrize("engine", ADAPTERS)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.note])
def test_the_engines_refuse_what_the_table_says(engine, name, lends, monkeypatch):
    if not lends:
        monkeypatch.setitem(capabilities.HOSTED, engine, Need.NOTHING)
    spec = parse_spec({"methods": [{"method": name}]})
    row = {row.name: row for row in capabilities.methods()}[name]
    read = Need.PROMPT_ROWS
    reads = any(need in read for need in METHOD_CONFIGS[name]().needs())
    assert row.cells[engine] == ("yes" if lends and not reads else "refused")
    if row.cells[engine] == "yes":
        ADAPTERS[engine].check_spec(spec, Settings())
    else:
        with pytest.raises(SpecError, match="does not host"):
            ADAPTERS[engine].check_spec(spec, Settings())


def test_methods_from_outside_are_in_the_table():
    with outside.let_in("pulse_gate", ListensMethod):
        found = {row.name: row for row in capabilities.methods()}
        assert found["pulse_gate"].package == "my-method 0.1.0"
        assert set(found["pulse_gate"].cells.values()) == {"yes"}
        assert found["listens"].package == "this process"
        assert found["listens"].cells == {
            engine: capabilities.hosts(engine, Need.HIDDEN_STATE) for engine in found["lead"].cells
        }
        assert "hidden state" in found["listens"].note


def test_the_doctor_lists_methods_from_outside_and_what_is_wrong_with_them(doctor):
    with outside.let_in():
        result = doctor("pulse_gate", "unmade", "gone", "faulty")
    assert result.exit_code == 1
    lines = result.output.splitlines()

    def line(name):
        return next(one for one in lines if one.startswith(f"│ {name} "))

    for name, package in (("pulse_gate", "my-method 0.1.0"), ("faulty", "faulty 0.1.0")):
        assert package in line(name)
        assert "broken" not in line(name)
    assert "faulty 0.1.0" in line("unmade")
    assert "broken" in line("unmade")
    assert "OSError" in result.output
    assert "no package has it" in line("gone")
    assert "not allowed" in line("no_echo")


def test_the_markdown_has_a_row_for_a_method_from_outside():
    plain = capabilities.markdown()
    with outside.let_in("pulse_gate"):
        more = capabilities.markdown().removeprefix(plain)
    assert more == "\n| pulse_gate, of my-method 0.1.0 | yes | yes | yes |  |"


def test_the_doctor_is_content_with_those_that_can_be_let_in(doctor):
    with outside.let_in():
        assert doctor("pulse_gate").exit_code == 0
        assert doctor().exit_code == 0


def test_the_doctor_lets_one_in_behind_another_whatever_their_order():
    @method(Follows, after="listens")
    class FollowsMethod(Method):
        def __init__(self):
            super().__init__("follows")

    with outside.let_in():
        assert let_in([FollowsMethod, ListensMethod]) == {}
        assert set(let_in(["gone", "pulse_gate"])) == {"gone"}
