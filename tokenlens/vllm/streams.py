"""The trace of a streamed request, in the chunk that ends its choice.

vLLM's chunks have no field of its own for it. The trace is seen as the engine's outputs go into the
generator of chunks, and put into the text of the chunk that has the finish reason when that comes
out: the same field as in a whole response, of that chunk's choice alone.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from tokenlens.serving.arguments import asks
from tokenlens.serving.streams import with_traces
from tokenlens.vllm.traces import FIELD

CHANNEL = "kv_transfer_params"
"""The field of whole responses in which vLLM hands on what an engine wants to say."""


def stream_generator(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Chunks of a request; those of one without a spec are vLLM's, untouched."""
    if not asks(getattr(request, "vllm_xargs", None)):
        return original(self, request, *args, **kwargs)
    found: dict[int, Any] = {}
    # Positions differ between the two kinds of completions; there is one stream of outputs.
    watched = [
        _watch(value, found, request.n or 1) if hasattr(value, "__aiter__") else value
        for value in args
    ]
    return _amend(original(self, request, *watched, **kwargs), found)


async def _watch(
    outputs: AsyncIterator[Any], found: dict[int, Any], samples: int
) -> AsyncIterator[Any]:
    """Note the trace of each choice that ends. A text completion may have several prompts."""
    async for output in outputs:
        prompt, result = output if isinstance(output, tuple) else (0, output)
        for one in result.outputs:
            trace = getattr(one, FIELD, None)
            if trace is not None:
                found[one.index + prompt * samples] = trace
        yield output


async def _amend(
    chunks: AsyncGenerator[str, None], found: dict[int, Any]
) -> AsyncGenerator[str, None]:
    # A client that leaves must end the inner generator at once, too: that is what aborts.
    async with aclosing(chunks):
        async for chunk in chunks:
            yield with_traces(chunk, found, _put) if found else chunk


def _put(content: dict[str, Any], choice: dict[str, Any], trace: Any) -> None:
    content[CHANNEL] = {**(content.get(CHANNEL) or {}), FIELD: trace.model_dump(mode="json")}
