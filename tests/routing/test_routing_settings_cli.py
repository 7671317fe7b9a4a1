"""``tokenlens route``: bad settings are errors that name the setting."""

import pytest
from typer.testing import CliRunner

from tokenlens.cli import app

HERE, THERE = "http://127.0.0.1:9", "http://127.0.0.1:19"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--small", HERE, "--large", HERE + "/"), ["large", "another address"]),
        (("--small", "here", "--large", THERE), ["small", "'here'", "an address"]),
        (("--small", HERE, "--large", THERE), ["small and large", "neither"]),
        (
            ("--small", HERE, "--large", THERE, "--policy", "best"),
            ["policy", "'best'", "specreason"],
        ),
        (("--small", HERE, "--large", THERE, "--threshold", "x"), ["threshold", "'x'", "a number"]),
        (("--small", HERE, "--large", THERE, "--threshold", "nan"), ["threshold", "nan"]),
        (
            ("--small", HERE, "--large", THERE, "--policy", "random", "--threshold", "1"),
            ["threshold", "random"],
        ),
        (("--small", HERE, "--large", THERE, "--small-api", "x"), ["small_api", "vllm"]),
        (("--small", HERE, "--large", THERE, "--setting", "retry=1"), ["setting", "retries"]),
        (("--small", HERE, "--large", THERE, "--setting", "retries=99"), ["retries", "99", "10"]),
        (("--small", HERE, "--large", THERE, "--policy", "missing.yaml"), ["missing.yaml"]),
        (("--small", HERE, "--large", THERE, "--ca-file", "no.pem"), ["ca_file", "no.pem", "PEM"]),
        (("--small", HERE, "--large", THERE, "--api-key", ""), ["api_key", "an empty one"]),
        (("--small", HERE, "--large", THERE, "--api-key-file", "no.keys"), ["no.keys"]),
        (("--small", HERE, "--large", THERE, "--cors-origin", ""), ["cors_origins"]),
        (("--small", HERE, "--large", THERE, "--setting", "metrics=all"), ["metrics", "open"]),
        (("--small", HERE, "--large", THERE, "--setting", "max_body=1"), ["max_body", "1024"]),
    ],
)
def test_bad_settings_name_the_setting(options, words):
    result = CliRunner().invoke(app, ["route", *options])
    assert result.exit_code == 2
    shown = " ".join(result.output.split())
    assert all(word in shown for word in words), shown
