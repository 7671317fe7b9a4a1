"""The command line's console asks the environment for its width, whenever it prints."""

import os

# Workers of pytest-xdist have both from readline, and a console that is made with both keeps them.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
