"""The compiler: refuses, because the interpreter never asks."""

from triton.backends.compiler import BaseBackend


class CPUBackend(BaseBackend):
    """No stages."""

    @staticmethod
    def supports_target(target):
        return target.backend == "cpu"

    def hash(self):
        return "cpu"

    def parse_options(self, options):
        raise NotImplementedError("nothing is compiled")

    def add_stages(self, stages, options):
        raise NotImplementedError("nothing is compiled")

    def load_dialects(self, context):
        raise NotImplementedError("nothing is compiled")

    def get_module_map(self):
        return {}

    def pack_metadata(self, metadata):
        return ()

    def get_codegen_implementation(self, options):
        return {}
