"""The driver: says that it is active, and what device it is for."""

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CPUDriver(DriverBase):
    """No device, no launcher."""

    def __init__(self):
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device=0: 0

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        raise NotImplementedError("nothing is compiled")

    def get_current_target(self):
        return GPUTarget("cpu", 0, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        return lambda function, **_: function()

    def get_device_interface(self):
        return torch.cpu
