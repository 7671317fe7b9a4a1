"""Two methods from outside tokenlens."""
