"""Stands for SGLang's kernel package, which has no build for processors.

SGLang imports these names when it starts, and looks the operators up when it imports what reads
images for Qwen's models; nothing that a dense model does calls them. A call says so, rather than
giving a result.
"""

from typing import Any

import torch

OPERATORS = (
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_sigmoid_mul_cpu",
)
NAMES = (
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "verify_tree_greedy_cpu",
)


def _missing(name: str) -> Any:
    def kernel(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name}: there is no kernel for processors")

    return kernel


globals().update({name: _missing(name) for name in NAMES})
# An operator without a kernel: torch says so where it is called.
_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")
for _name in OPERATORS:
    _LIBRARY.define(f"{_name}(Tensor a, Tensor b) -> Tensor")
