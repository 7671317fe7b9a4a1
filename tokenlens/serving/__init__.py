"""What engines that schedule requests themselves have in common. Knows neither vLLM nor SGLang.

The requests of a model runner and the history of their concept tokens, the op behind the input
embedding, a spec as arguments of a request, what the operator allows, and the way of
reports and traces from the worker to the front end.
"""
