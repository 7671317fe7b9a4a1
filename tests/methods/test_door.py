"""Methods from outside: let in by name, checked before anything starts, run like ours."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import faulty_method as faulty
import outside
import pytest

HERE = Path(__file__).parent
MODULE = (HERE / "broken_methods.py").read_text()

RUN = """
import json, sys
import tokenlens
from tokenlens.methods import allow, active
names = sys.argv[1].split(",") if sys.argv[1] else []
try:
    allow(names)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)])); raise SystemExit
order = [one.name for one in active()]
print(json.dumps([order, sorted(tokenlens.spec.METHOD_CONFIGS), "my_method" in sys.modules]))
"""


def run(folders, code, *arguments, **environment):
    """What a Python process prints as JSON, with folders on its path."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True,
        env=outside.environment(*folders, **environment),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example's package, as if it were installed."""
    return outside.example(tmp_path_factory.mktemp("site"))


def test_nothing_is_imported_that_nobody_named(installed):
    order, known, imported = run(installed, RUN, "")
    assert not imported
    assert "pulse_gate" not in order
    assert "pulse_gate" not in known


def test_what_is_named_stands_behind_the_method_that_it_says(installed):
    order, known, _ = run(installed, RUN, "pulse_gate,no_echo")
    assert order[order.index("soft_thinking") + 1] == "pulse_gate"
    assert order[order.index("nowait") + 1] == "no_echo"
    assert order[-1] == "trace"
    assert {"pulse_gate", "no_echo"} <= set(known)
    assert run(installed, RUN, "no_echo,pulse_gate")[0] == order


SCHEMA = """
import json
from tokenlens.methods.door import allow_from_environment
from tokenlens import DecodingSpec, parse_spec
before = DecodingSpec.model_json_schema()["properties"]["methods"]["items"]["discriminator"]
allow_from_environment()
after = DecodingSpec.model_json_schema()["properties"]["methods"]["items"]["discriminator"]
spec = parse_spec({"methods": [{"method": "pulse_gate"}, {"method": "no_echo"}]})
errors = []
for wrong in ({"method": "pulse_gate", "latent": 0}, {"method": "no_echo", "penalty": 1e9},
              {"method": "no_ech"}, {"method": "no_echo", "penalty": float("nan")}):
    try:
        parse_spec({"methods": [wrong]})
    except Exception as error:
        errors.append(str(error))
for two in (["pulse_gate", "soft_thinking"], ["pulse_gate", "random_route"]):
    try:
        parse_spec({"methods": [{"method": name} for name in two]})
    except Exception as error:
        errors.append(str(error))
from tokenlens.trace.records import Trace
held = "pulse_gate" in json.dumps(Trace.model_json_schema())
same = parse_spec(spec.model_dump_json()) == spec and hash(spec) is not None
print(json.dumps([sorted(set(after["mapping"]) - set(before["mapping"])), errors, held, same]))
"""


def test_spec_schema_errors_and_traces_know_them(installed):
    added, errors, held, same = run(installed, SCHEMA, TOKENLENS_METHODS="pulse_gate, no_echo")
    assert added == ["no_echo", "pulse_gate"]
    assert held
    assert same
    parts = [
        "methods[0].latent: got 0; allowed: an integer at least 1",
        "methods[0].penalty: got 1000000000.0; allowed: a finite number at least 0 and at most 100",
        "say {method: no_echo}",
        "methods[0].penalty: got nan",
        "pulse_gate and soft_thinking; allowed: one of",
        "two gates would decide one step",
    ]
    assert len(errors) == len(parts)
    for error, part in zip(errors, parts):
        assert part in error


BUILT = """
import json, sys, warnings
from tokenlens.trace.records import Trace
if sys.argv[1] == "built":
    from tokenlens.spec import DecodingSpec
    DecodingSpec(methods=[])
from tokenlens.methods import allow
allow(["pulse_gate"])
from tokenlens.spec import parse_spec
spec = parse_spec({"methods": [{"method": "pulse_gate"}]})
trace = Trace.model_construct(spec=spec)
warnings.simplefilter("error")
print(json.dumps(trace.model_dump(include={"spec"})["spec"]["methods"][0]["method"]))
"""


@pytest.mark.parametrize("spec", ["built", "not built"])
def test_a_trace_knows_a_method_that_came_after_it(installed, spec):
    """A trace has a copy of a spec's schema, whether a spec was made before or not."""
    assert run(installed, BUILT, spec) == "pulse_gate"


# What stands in the entry point, and a part of what the start says.
WRONG = {
    "missing module": ("nowhere_at_all:X", "ModuleNotFoundError"),
    "missing class": ("broken_methods:Missing", "AttributeError"),
    "no class": ("broken_methods:MODULE", "AttributeError"),
    "a module": ("broken_methods", "a subclass of tokenlens.methods.Method"),
    "no method": ("broken_methods:NoMethod", "a subclass of tokenlens.methods.Method"),
    "no decorator": ("broken_methods:Undeclared", "@method(CONFIG"),
    "no config": ("broken_methods:NoConfig", "a subclass of tokenlens.spec.MethodBase"),
    "nowhere": ("broken_methods:Nowhere", "got after='nowhere'; allowed: no_thinking, "),
    "behind the last": ("broken_methods:Behind", "got after='trace'"),
    "another name": ("broken_methods:OtherName", "got an instance of the name 'other'"),
    "a shared column": ("broken_methods:Column1", "the column phase a second time"),
    "a column of ours": ("broken_methods:Column2", "the column min_p.min_p a second time"),
    "a column twice": ("broken_methods:Column3", "the column plain.x a second time"),
    "a hook's arguments": ("broken_methods:Signature", "allowed: edit(self, logits, rows)"),
    "a constructor": ("broken_methods:Raises", "ZeroDivisionError"),
    "a name that differs": ("broken_methods:TextMethod", "method: Literal['plain']"),
    "no name": ("broken_methods:NoName", "got an instance of the name None"),
    "a default that is no JSON": ("broken_methods:NoJson", "is not JSON serializable"),
    "a default that raises": ("broken_methods:LateDefault", "got ZeroDivisionError"),
    "a validator that raises": ("broken_methods:Validator", "got RuntimeError"),
    "entries that raise": ("broken_methods:Entries", "entries: got KeyError"),
    "needs that are none": ("broken_methods:Needs", "needs: got None"),
    "a family of one word": ("broken_methods:OneWord", "family: got 'latent'"),
    "rules of texts": ("broken_methods:Texts", "requires: got ('soft_thinking',)"),
    "recipes of none": ("broken_methods:Recipes", "recipes: got"),
    "a recipe of ours": ("broken_methods:OurRecipe", "got the recipes ['soft'] again"),
    "no place": ("broken_methods:NoPlace", "got after=None"),
    "columns that raise": ("broken_methods:Columns", "got RuntimeError (no columns)"),
    "a column of text": ("broken_methods:TextColumn", "the column plain.x of 1 text"),
    "a default of another kind": ("broken_methods:FloatDefault", "of 1 int, 0.5"),
    "a default beyond int64": ("broken_methods:LargeDefault", "of 1 int, "),
    "a NaN as default": ("broken_methods:NanDefault", "of 1 float, nan"),
    "a huge column": ("broken_methods:HugeColumn", "of 1000000 int"),
    "another's column": ("broken_methods:Foreign", "a name that begins with 'plain'"),
    "no switch": ("broken_methods:NoSwitch", "got fields without self.on"),
    "counters of none": ("broken_methods:NoCounters", "got counters = None"),
    "a counter of nothing": ("broken_methods:Uncounted", "one of its int columns"),
    "a counter of ours": ("broken_methods:OurCounter", "counters: got 'tokens'"),
    "a counter's name": ("broken_methods:LoudCounter", "the counter 'A B'"),
    "counters that raise": ("broken_methods:RaisingCounters", "got RuntimeError (no counters)"),
    "records that raise": ("broken_methods:RaisingRecords", "got RuntimeError (no records)"),
    "another's record": ("broken_methods:ForeignRecords", "got the records ['min_p']"),
    "serves": ("broken_methods:Serves", "got serves(); allowed: none"),
    "admit's arguments": ("broken_methods:Admits", "allowed: admit(self, config, admission)"),
    "a class that ends the process": ("broken_methods:Exits", "got SystemExit"),
    "a module that ends it": ("broken_exits:X", "got SystemExit"),
}


BOUNDS = {
    "unbounded": ("broken_methods:UnboundedMethod", "scale: got a number without bounds"),
    "text": ("broken_methods:TextMethod", "text: got a text of any length"),
    "wrong_default": ("broken_methods:WrongDefaultMethod", "scale: got a default of 7.0"),
    "loose": ("broken_methods:LooseMethod", "extra = 'allow'; allowed: 'forbid'"),
    "min_p": ("broken_methods:MinMethod", "a method that tokenlens has"),
    "hidden_feedback": ("broken_methods:HiddenMethod", "a part of tokenlens"),
    "gate": ("broken_methods:GateNamed", "a part of tokenlens"),
}
"""Configs that are not held to the bounds of ours, and a name of ours."""

EACH = """
import json, sys
from tokenlens.methods import active, allow
from tokenlens.spec import METHOD_CONFIGS
known, found = list(METHOD_CONFIGS), {}
for case, (folder, name) in json.loads(sys.argv[1]).items():
    sys.path.insert(0, folder)
    try:
        found[case] = ["let in", str(allow([name]))]
    except Exception as error:
        found[case] = [type(error).__name__, str(error)]
    sys.path.remove(folder)
    assert list(METHOD_CONFIGS) == known, case
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What the start says of each broken method; all in one process, which none of them changes."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "broken_methods.py").write_text(MODULE)
    (modules / "broken_exits.py").write_text("raise SystemExit(3)")
    cases = {case: ("plain", value) for case, (value, _) in WRONG.items()}
    cases |= {name: (name, value) for name, (value, _) in BOUNDS.items()}
    work = {}
    for case, (name, value) in cases.items():
        folder = tmp_path_factory.mktemp("site")
        work[case] = [outside.distribution(folder, "broken", [(name, value)]), name]
    return run([modules], EACH, json.dumps(work))


@pytest.mark.parametrize("case", [*WRONG, *BOUNDS])
def test_a_broken_method_ends_the_start_with_its_name_and_the_reason(case, refusals):
    kind, text = refusals[case]
    assert kind == "MethodError"
    name = case if case in BOUNDS else "plain"
    assert text.startswith(f"method {name!r}: ")
    assert {**WRONG, **BOUNDS}[case][1] in text
    assert "allowed: " in text


def test_a_method_that_is_not_installed(installed):
    kind, text = run(installed, RUN, "pulse_gat")
    assert kind == "MethodError"
    assert "method 'pulse_gat': got no entry point" in text
    assert "no_echo, pulse_gate" in text


def test_two_packages_with_one_name(installed, tmp_path):
    other = outside.distribution(tmp_path, "other", [("no_echo", "other:X")])
    kind, text = run([*installed, other], RUN, "no_echo")
    assert kind == "MethodError"
    assert "got 2 entry points" in text
    assert "other:X of other" in text


HF = """
import json, sys
import torch, transformers
from tokenlens.hf import generate_kwargs, traces
torch.manual_seed(0)
specs, prompt, markers, tokens = json.loads(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
found = {}
for name, methods in specs.items():
    spec = {"methods": methods, "phase": markers, "seed": 0}
    kwargs = generate_kwargs(model, None, spec, methods=json.loads(sys.argv[3]))
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens,
                         pad_token_id=0, **kwargs)
    trace = traces(kwargs)[0]
    found[name] = [ids[0, len(prompt):].tolist(), trace.counts.latent_steps]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model's folder."""
    sys.path.insert(0, str(HERE.parent / "conformance"))
    import conformance_models as models

    return models.save("qwen3", tmp_path_factory.mktemp("model"))


def test_hugging_face_runs_both_and_the_rows_beside_them_as_before(installed, model):
    work = json.dumps([outside.SPECS, outside.PROMPT, outside.MARKERS, 24])
    found = run(installed, HF, work, model, json.dumps(["pulse_gate", "no_echo"]))
    alone = json.dumps([{"soft": outside.SPECS["soft"]}, outside.PROMPT, outside.MARKERS, 24])
    assert found["soft"] == run([], HF, alone, model, "[]")["soft"]
    for name in ("pulse", "pulse-echo"):
        assert 0 < found[name][1] < 24
    ids = found["echo"][0]
    assert all(one != other for one, other in itertools.pairwise(ids))


FAULTS = """
import json, sys
import torch, transformers
import faulty_method as faulty
from tokenlens.hf import generate_kwargs
prompt, markers = json.loads(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
soft = {"methods": [{"method": "soft_thinking"}], "phase": markers, "seed": 0}
found = {}
for fault in ("", *faulty.FAULTS):
    spec = {**soft, "methods": [{"method": "faulty", "fault": fault}]}
    try:
        kwargs = generate_kwargs(model, None, [soft, spec], methods=["faulty"])
        ids = model.generate(torch.tensor([prompt, prompt]), do_sample=False, max_new_tokens=6,
                             pad_token_id=0, **kwargs)
        found[fault] = ids[:, len(prompt):].tolist()
    except Exception as error:
        found[fault] = [type(error).__name__, str(error), repr(error.__cause__)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def faults(model):
    """What a caller of ``generate()`` sees of each fault; beside it stands a row without one."""
    work = json.dumps([outside.PROMPT, outside.MARKERS])
    return run(outside.installed(), FAULTS, work, model)


@pytest.mark.parametrize("fault", [*faulty.RAISES, *faulty.WRONG])
def test_an_error_in_a_hook_is_seen_by_whoever_called_generate(fault, faults):
    kind, text, cause = faults[fault]
    if fault == "admit a NaN":
        assert kind == "SpecError"
        assert "faulty: got nan" in text
        return
    hook = (faulty.RAISES | faulty.WRONG)[fault]
    assert kind == "MethodError"
    assert text.startswith("method 'faulty': got ")
    assert f"from its hook {hook}; allowed: " in text
    # Whoever called has the author's exception as well.
    mistake = f"the author's mistake in {hook}"
    assert (mistake in text) == (mistake in cause) == (fault in faulty.RAISES)


@pytest.mark.parametrize("fault", [*faulty.INVALID, *faulty.GREEDY])
def test_what_cannot_be_used_changes_no_other_row(fault, faults):
    assert faults[fault][0] == faults[""][0]
    assert len(faults[fault][1]) == 6


@pytest.mark.parametrize(
    "path", ["my_method/pulse_gate.py", "my_method/no_echo.py", "pyproject.toml"]
)
def test_the_guide_is_the_example(path):
    page = (outside.ROOT / "docs" / "guides" / "write_a_method.md").read_text()
    assert (outside.EXAMPLE / path).read_text() in page
