"""Runs at the start of every process of a test engine, because its folder is on PYTHONPATH."""

import os
import sys

import fake_torchvision  # noqa: F401  # for what it does when it is imported


def lose(target):
    """Take a function away from a module of SGLang's, as another version might."""
    from tokenlens.serving.hooks import after_import

    module, owner, name = target.split()
    after_import(module, lambda found: delattr(getattr(found, owner), name))


def pretend(version):
    """Let another version of SGLang be installed."""
    from tokenlens import versions

    versions.installed = lambda engine: version


if os.environ.get("TOKENLENS_TEST_UNLOADED") == "1":
    sys.modules["tokenlens.sglang.plugin"] = None  # an import of it fails
elif os.environ.get("TOKENLENS_TEST_SWITCHES") == "1":
    import sglang_switches

    from tokenlens.serving.hooks import after_import

    after_import("tokenlens.sglang.scheduler", lambda _: sglang_switches.install_now())
if os.environ.get("TOKENLENS_TEST_LOST"):
    lose(os.environ["TOKENLENS_TEST_LOST"])
if os.environ.get("TOKENLENS_TEST_VERSION"):
    pretend(os.environ["TOKENLENS_TEST_VERSION"])
