"""A Triton backend named "cpu" that compiles nothing: kernels run in Triton's interpreter.

vLLM takes its second model runner only where Triton works. With ``TRITON_INTERPRET=1`` no kernel is
ever compiled, so that a backend only has to be there. Found through the entry point beside it, when
this folder's parent is on the path.
"""
