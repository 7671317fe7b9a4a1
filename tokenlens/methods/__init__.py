"""What each method does: pure functions on tensors, one file a method, and their registry."""

from tokenlens.methods.registry import METHODS, Method

__all__ = ["METHODS", "Method"]
