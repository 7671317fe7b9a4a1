"""Runs at the start of every process of a test engine, because its folder is on PYTHONPATH."""

import os
import sys

import torchvision_stand_in  # noqa: F401  # for what it does when it is imported

if os.environ.get("TOKENLENS_TEST_UNLOADED") == "1":
    sys.modules["tokenlens.sglang.plugin"] = None  # an import of it fails
elif os.environ.get("TOKENLENS_TEST_RIG") == "1":
    import sglang_rig

    from tokenlens.vllm.hooks import after_import

    after_import("tokenlens.sglang.scheduler", lambda _: sglang_rig.install_now())
