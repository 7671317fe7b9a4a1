"""Stands for SGLang's kernel package, which has no build for processors.

SGLang imports these names when it starts; nothing that a dense model does calls them. A call says
so, rather than giving a result.
"""

from typing import Any

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
