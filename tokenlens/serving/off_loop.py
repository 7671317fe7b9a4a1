"""Work for requests off the event loop of a front end, so that nobody else's request waits for it.

One thread: a client who sends many specs waits in his own line, and the event loop shares the
interpreter with one thread only. Knows no engine.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenlens-binding")


async def off_loop(call: Callable[[], Result]) -> Result:
    """What a call returns or raises, made in the thread that binds specs."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, call)
