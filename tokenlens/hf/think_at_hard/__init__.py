"""Think-at-Hard (arXiv 2511.08577): a second forward pass at positions that a decider chooses.

``learned.py`` reads what was learned, ``passes.py`` makes the passes, ``generate.py`` is the loop.
"""
