"""One call of a router to a real server, as its step loop makes it."""

import asyncio

from tokenlens.routing import Ask, Sampling
from tokenlens.routing.discovery import discover
from tokenlens.routing.http import HTTPBackend, HTTPSettings

PATIENT = HTTPSettings(read_timeout=600, connect_timeout=60, retries=0)


def routed(url, prompt, specs, max_tokens, tokenizer=None, signals=True):
    """What a server says of itself, whether it carries specs out, and the text of each of them."""

    async def go():
        found = await discover("small", url, PATIENT, tokenizer=tokenizer)
        backend = HTTPBackend(
            "small", url, found.model, api=found.api, settings=PATIENT, specs_in=found.specs_in
        )
        words = found.vocabulary
        context = tuple(words.encode(prompt)) if found.api == "vllm" else prompt
        chunks = []
        try:
            carries = await backend.carries_specs()
            for spec in specs:
                ask = Ask("s", context, max_tokens, Sampling(), arguments=spec, signals=signals)
                chunks.append([chunk async for chunk in backend.generate(ask)])
        finally:
            await backend.close()
        return found, carries, chunks

    return asyncio.run(go())
