"""A model that is a table, whose children end in any order; and the tiny reasoner's controllers."""

import asyncio
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "routing"))

from routing_support import model, prompts, vocabulary

from tokenlens.controllers import Controller
from tokenlens.routing.hf import HFBackend

END = "<|im_end|>"


class Shuffled:
    """A backend whose calls are answered in an order drawn by chance, each as it would be."""

    trips = True
    gives_full_entropy = True

    def __init__(self, backend, seed, failing=()):
        self.backend, self.random = backend, random.Random(seed)
        self.running, self.sessions = 0, set()
        self.calls, self.failing = 0, failing
        self.max_length = getattr(backend, "max_length", None)

    async def generate(self, ask):
        self.calls += 1
        self.running += 1
        self.sessions.add(ask.session)
        try:
            for error in self.failing:
                error(self.calls, ask)
            async for chunk in self.backend.generate(ask):
                for _ in range(self.random.randrange(4)):
                    await asyncio.sleep(0)
                yield chunk
        finally:
            self.running -= 1

    async def log_probs(self, session, context, ids):
        return await self.backend.log_probs(session, context, ids)

    async def entropies(self, session, context, ids):
        return await self.backend.entropies(session, context, ids)

    async def release(self, session):
        self.sessions.discard(session)
        await self.backend.release(session)

    async def close(self):
        await self.backend.close()


def steer(spec, asked=None, *, wrap=lambda backend: backend, sessions=16, **kwargs):
    """Prompts through one controller over the tiny reasoner, all at once."""
    asked = prompts(4) if asked is None else asked

    async def go():
        backend = wrap(HFBackend(model("small"), vocabulary(), max_sessions=sessions))
        controller = Controller(backend, spec, vocabulary=vocabulary())
        try:
            kwargs.setdefault("max_tokens", 320)
            return await asyncio.gather(*(controller.run(ids, **kwargs) for ids in asked))
        finally:
            await controller.close()

    return asyncio.run(go())
