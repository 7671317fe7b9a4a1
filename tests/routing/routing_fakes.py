"""Fakes of other people's completion servers: text in, text out, over a tiny reasoner.

It is tokenlens' own code behind a real socket, for tests of the router's side; tests against vLLM
itself are in ``test_routing_vllm.py``.
"""

import contextlib
import json
import math
import threading
import time

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from ports import free_port
from routing_support import model, vocabulary

from tokenlens.routing import Ask, Sampling
from tokenlens.routing.hf import HFBackend

PATIENCE = 300


def wait_for(condition):
    """Until it is so, however slow the machine."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Served:
    """An application on a port of this process."""

    def __init__(self, app):
        port = free_port()
        self._server = uvicorn.Server(self.config(app, port))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{port}"
        wait_for(lambda: self._server.started)

    def config(self, app, port):
        """How it is served."""
        return uvicorn.Config(app, port=port, log_level="warning")

    def close(self):
        """Until it has ended."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def openai(text, top, reason):
    """As OpenAI's completions: vLLM and SGLang do it so."""
    return {"logprobs": {"tokens": [text], "top_logprobs": [top]}}, {}


def sglang(text, top, reason):
    """SGLang also says which token ended the text; nothing was asked to stop it."""
    choice, event = openai(text, top, reason)
    return {**choice, "matched_stop": 2 if reason == "stop" else None}, event


def entries(top, value="logprob", text="token"):
    return [{"id": 7, text: word, "bytes": [], value: lp} for word, lp in top.items()]


def llama(text, top, reason):
    """llama.cpp since December 2024: the chat's shape in completions."""
    entry = {"id": 7, "token": text, "bytes": [], "logprob": -0.1, "top_logprobs": entries(top)}
    return {"logprobs": {"content": [entry]}}, {}


def llama_shares(text, top, reason):
    """The same with ``post_sampling_probs``: probabilities."""
    shares = {word: math.exp(value) for word, value in top.items()}
    entry = {"id": 7, "token": text, "prob": 0.9, "top_probs": entries(shares, "prob")}
    return {"logprobs": {"content": [entry]}}, {}


def llama_before(text, top, reason):
    """llama.cpp before December 2024, beside the choices."""
    shares = {word: math.exp(value) for word, value in top.items()}
    probs = entries(shares, "prob", "tok_str")
    return {}, {"completion_probabilities": [{"content": text, "probs": probs}]}


def unknown(text, top, reason):
    """A shape that nobody has."""
    return {"logprobs": {"odds": [3, 1]}}, {}


def fake_server(role, dialect=openai, asked=None, words=None):
    """``/v1/completions`` of one tiny reasoner, streamed, with the largest log-probabilities.

    ``asked`` is a list that gets every request; ``words`` another tokenizer, whose BOS is read as
    nothing.
    """
    words = words or vocabulary()
    backend = HFBackend(model(role), words)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        await backend.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/v1/models")
    async def models():
        return {"data": [{"id": f"tiny-{role}", "owned_by": "somebody"}]}

    @app.post("/v1/completions")
    async def completions(request: Request):
        body = await request.json()
        if asked is not None:
            asked.append(body)
        sampling = Sampling(
            temperature=body.get("temperature", 1.0), top_p=body.get("top_p", 1.0),
            seed=body["seed"],
        )  # fmt: skip
        ask = Ask(
            str(id(body)), tuple(words.encode(body["prompt"])), body["max_tokens"], sampling,
            signals=True, stream=True,
        )  # fmt: skip
        return StreamingResponse(events(ask, body["logprobs"]), media_type="text/event-stream")

    async def events(ask, count):
        chunks = backend.generate(ask)
        try:
            async for chunk in chunks:
                text = words.decode([i for i in chunk.ids if i not in words.eos_ids])
                top = dict(chunk.signals.top[:count]) if chunk.signals else {}
                reason = {"eos": "stop"}.get(chunk.finish, chunk.finish)
                more, beside = dialect(text, top, reason)
                choice = {"text": text, "finish_reason": reason, **more}
                yield f"data: {json.dumps({'choices': [choice], **beside})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            await chunks.aclose()
            await backend.release(ask.session)

    return app
