"""Runs at the start of every process of a test engine, because its folder is on PYTHONPATH.

The package index has torchvision for CUDA only; its operators cannot be loaded beside a torch for
processors, and its Python part fails where it describes two of them. They are declared here, just
before it is imported. No test calls them.
"""

import importlib.abc
import os
import sys


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.tokenlens_test_library = library  # kept alive
        return None


sys.meta_path.insert(0, _BeforeTorchvision())

if os.environ.get("TOKENLENS_TEST_RIG") == "1":
    import sglang_rig

    from tokenlens.vllm.hooks import after_import

    after_import("tokenlens.sglang.scheduler", lambda _: sglang_rig.install_now())
