"""What each method does: pure functions on tensors, one file a method, and their registry."""

from tokenlens.core.method import Method
from tokenlens.methods.registry import METHODS

__all__ = ["METHODS", "Method"]
