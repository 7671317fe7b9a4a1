"""Every exception of the package: once, in one place, with what is wrong as data."""

import ast
import copy
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import tokenlens
from tokenlens import errors
from tokenlens.errors import (
    BackendError,
    BodyError,
    EmbeddingError,
    ErrorDetail,
    ProtocolError,
    SpecError,
    TokenlensError,
    TraceFileError,
    UnsupportedError,
)

ROOT = Path(__file__).parents[1]
CLASSES = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, TokenlensError)
]
EXAMPLES = [
    SpecError.of("seed", "x" * 500, "an integer", "leave it out"),
    UnsupportedError.of("num_beams", 4, "1, because rows are reordered", "Use do_sample=True."),
    EmbeddingError("model: got 2 input embeddings (a, b); allowed: one. Name others."),
    ProtocolError("rows: got 3; allowed: the 2 of the first step"),
    BackendError("small", "refused", "HTTP 400", 400, "words"),
    BodyError(413, "the body: got 9; allowed: at most 8 bytes"),
    TraceFileError("line 3: got no JSON; allowed: a trace", ({"a": 1},)),
]


def exceptions_in(text):
    """Names of public exception classes that a module defines."""
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    ]


def test_exceptions_are_defined_in_one_place():
    for path in (ROOT / "tokenlens").rglob("*.py"):
        if path != ROOT / "tokenlens" / "errors.py":
            assert exceptions_in(path.read_text()) == [], path
    assert exceptions_in("class A(ValueError): ...\nclass B(x.YError): ...") == ["A", "B"]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_say_what_is_wrong_as_data_too(error):
    assert isinstance(error, TokenlensError)
    assert error.field
    assert error.got
    assert error.allowed
    assert error.field in str(error)
    assert error.got in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_the_way_to_another_process(error):
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def test_the_house_form_of_a_text_is_read():
    error = UnsupportedError(
        "tokenlens: pp_size: got 2; allowed: 1, because of ranks. Use tp_size.\n"
        "tokenlens: dp_size: got 3; allowed: 1"
    )
    assert error.problems == (
        ErrorDetail("pp_size", "2", "1, because of ranks", "Use tp_size."),
        ErrorDetail("dp_size", "3", "1"),
    )
    assert UnsupportedError("nothing of the kind").field == ""


def test_what_users_catch_today_still_catches():
    for kind in (NotImplementedError, ValueError, TokenlensError):
        with pytest.raises(kind):
            raise UnsupportedError("x")
    for found in (SpecError, EmbeddingError, TraceFileError):
        assert issubclass(found, ValueError)
    for found in (ProtocolError, BackendError):
        assert issubclass(found, RuntimeError)
    assert {found.__name__ for found in CLASSES} >= {"TokenlensError", "SpecError"}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("tokenlens", ["SpecError", "TokenlensError", "UnsupportedError"]),
        ("tokenlens.spec", ["SpecError", "SpecProblem"]),
        ("tokenlens.spec.errors", ["SpecError", "SpecProblem", "shorten", "cut"]),
        ("tokenlens.hf", ["ProtocolError", "UnsupportedError"]),
        ("tokenlens.hf.refusals", ["UnsupportedError"]),
        ("tokenlens.serving.refusals", ["UnsupportedError"]),
        ("tokenlens.serving.embedding", ["EmbeddingError"]),
        ("tokenlens.routing", ["BackendError"]),
        ("tokenlens.trace", ["TraceFileError"]),
        ("tokenlens.evaluation", ["FolderError"]),
    ],
)
def test_old_places_still_have_them(module, names):
    found = importlib.import_module(module)
    for name in names:
        assert getattr(found, name) is getattr(errors, name)


def test_the_errors_need_the_standard_library_alone():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('errors', {str(errors.__file__)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['errors'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert not {'torch', 'pydantic', 'numpy', 'yaml', 'tokenlens'} & set(sys.modules)\n"
        "print(module.SpecError.of('a', 1, 'b'))\n"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "a: got 1; allowed: b", done.stderr


def test_the_package_offers_the_base():
    assert tokenlens.TokenlensError is TokenlensError
