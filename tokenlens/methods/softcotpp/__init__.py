"""``softcotpp``: ``config.py`` says what it can be asked for, ``step.py`` does it."""
