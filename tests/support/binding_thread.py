"""Whether a front end binds a spec in the thread that is for it, and not on the event loop."""

import asyncio
import threading

from tokenlens.spec import vocabulary


def bound_off_the_loop(monkeypatch, admit):
    """What admission gives back, while the event loop goes on with other things.

    Parameters
    ----------
    admit
        Makes a coroutine that admits a request whose spec has words to search for.
    """
    goes_on, threads = threading.Event(), []
    search = vocabulary.Vocabulary.matching

    def waits(self, *args, **kwargs):
        threads.append(threading.current_thread())
        # Set by the event loop: on the loop itself this would wait for good.
        assert goes_on.wait(60)
        return search(self, *args, **kwargs)

    monkeypatch.setattr(vocabulary.Vocabulary, "matching", waits)

    async def run():
        asked = asyncio.ensure_future(admit())
        while not threads and not asked.done():
            await asyncio.sleep(0.001)
        goes_on.set()
        return await asked

    admitted = asyncio.run(run())
    # Bound once: what the engine does on the loop finds it.
    assert [thread.name[:17] for thread in threads] == ["tokenlens-binding"]
    return admitted
