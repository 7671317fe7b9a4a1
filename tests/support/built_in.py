"""The core and what binds a spec to a model, with the methods of the library."""

from functools import partial

from tokenlens import core
from tokenlens.methods import METHODS

Core = partial(core.Core, methods=METHODS)
bind = partial(core.bind, methods=METHODS)
