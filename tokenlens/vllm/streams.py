"""The trace of a streamed request, in the chunk that ends its choice.

Up to 0.32 vLLM's chunks have no field of its own for it. The trace is seen as the engine's outputs
go into the generator of chunks, and put into the text of the chunk that has the finish reason when
that comes out: the same field as in a whole response, of that chunk's choice alone.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from tokenlens.serving.arguments import asks
from tokenlens.serving.streams import DATA, with_traces
from tokenlens.vllm.traces import FIELD

CHANNEL = "kv_transfer_params"
"""The field of whole responses in which vLLM hands on what an engine wants to say."""


def stream_generator(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Chunks of a request; those of one without a spec are vLLM's, untouched."""
    params = getattr(request, "sampling_params", None)  # of a request in tokens
    asked = getattr(request, "vllm_xargs", None) or getattr(params, "extra_args", None)
    if not asks(asked):
        return original(self, request, *args, **kwargs)
    samples = getattr(params or request, "n", None) or 1
    found: dict[int, Any] = {}

    # Positions differ between the two kinds of completions; there is one stream of outputs.
    def watched(value: Any) -> Any:
        return _watch(value, found, samples) if hasattr(value, "__aiter__") else value

    positional = [watched(value) for value in args]
    named = {name: watched(value) for name, value in kwargs.items()}
    return _amend(original(self, request, *positional, **named), found)


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


def whole_completion(
    original: Any, self: Any, final_res_batch: list[Any], *args: Any, **kwargs: Any
) -> Any:
    """A text completion of several prompts, with the traces of all of them."""
    traces = [getattr(one, FIELD, None) for result in final_res_batch for one in result.outputs]
    response = original(self, final_res_batch, *args, **kwargs)
    if len(final_res_batch) > 1 and any(trace is not None for trace in traces):
        plain = [None if trace is None else trace.model_dump(mode="json") for trace in traces]
        response.kv_transfer_params = {**(response.kv_transfer_params or {}), FIELD: plain}
    return response


def _carried(chunk: Any) -> dict[str, Any]:
    """What a chunk of a chat carries in our channel: a text up to vLLM 0.32, then an object."""
    carried: dict[str, Any] | None = None
    if not isinstance(chunk, str):
        carried = getattr(chunk, CHANNEL, None)
    elif f'"{FIELD}"' in chunk and chunk.startswith(DATA + "{"):
        carried = json.loads(chunk.removeprefix(DATA)).get(CHANNEL)
    return carried or {}


async def message_stream(
    original: Any, self: Any, generator: AsyncGenerator[Any, None]
) -> AsyncGenerator[str, None]:
    """Anthropic's events, with the trace in the one that says why the message ended."""
    found: list[Any] = []

    async def watched() -> AsyncGenerator[Any, None]:
        async with aclosing(generator):
            async for chunk in generator:
                carried = _carried(chunk)
                if FIELD in carried:
                    found.append(carried[FIELD])
                yield chunk

    async with aclosing(original(self, watched())) as events:
        async for event in events:
            head, _, data = event.partition(DATA)
            if found and head.startswith("event: message_delta"):
                content = {**json.loads(data), CHANNEL: {FIELD: found.pop()}}
                event = f"{head}{DATA}{json.dumps(content, ensure_ascii=False)}\n\n"
            yield event
