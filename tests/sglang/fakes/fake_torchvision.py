"""Lets torchvision be imported beside a torch for processors.

The package index has torchvision for CUDA only; its operators cannot be loaded here, and its Python
part fails where it describes two of them. They are declared just before it is imported. No test
calls them.
"""

import atexit
import importlib.abc
import sys


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            # Kept alive, but not until the interpreter is being taken apart.
            atexit.register(library._destroy)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
