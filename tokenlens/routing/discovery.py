"""What a server says of itself: its model, whether it is vLLM, and the tokenizer it uses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from tokenlens.errors import SpecError
from tokenlens.routing import reading
from tokenlens.routing.addresses import read_address
from tokenlens.routing.carried import FIELDS, SpecField
from tokenlens.routing.completions import Api
from tokenlens.routing.http import HTTPSettings, client
from tokenlens.routing.settings import Role
from tokenlens.routing.vocabulary import RouterVocabulary

MAX_LISTING = 4 << 20
"""Bytes of a server's list of models."""
MAX_LEAD = 64
"""Tokens of a short text, with what a server puts before and behind it."""


@dataclass(frozen=True)
class Endpoint:
    """One of the two servers."""

    role: Role
    url: str
    model: str
    api: Api
    vocabulary: RouterVocabulary | None
    max_length: int | None = None
    # what it puts before a text, where it says so; the tokenizer's own habit where it does not
    lead: str | None = None
    specs_in: SpecField | None = None


def check_urls(urls: Mapping[Role, str]) -> None:
    """All addresses, before anything is asked.

    Raises
    ------
    SpecError
        One is no address, or two are the same.
    """
    found = [read_address(field, url) for field, url in urls.items()]
    if len(set(found)) < len(found):
        allowed = "another address than small's: one model cannot route"
        raise SpecError.of("large", urls["large"], allowed)


async def ask(url: str, settings: HTTPSettings, api_key: str | None) -> dict[str, Any] | None:
    """The first model that a server lists, or ``None`` where it does not answer."""
    async with client(url, settings, api_key) as http:
        try:
            async with http.stream("GET", "models") as response:
                response.raise_for_status()
                listed = json.loads(await reading.body(response, MAX_LISTING))
            return dict(listed["data"][0])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            return None


def load_vocabulary(field: str, name: str) -> RouterVocabulary:
    """A tokenizer from a folder or a hub id, with its model's end-of-text tokens if they are there.

    Raises
    ------
    SpecError
        It cannot be loaded.
    """
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SpecError.of(
            field, name, f"a tokenizer that can be loaded here ({str(error).splitlines()[0]})"
        ) from None
    try:
        eos = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:
        eos = None
    return RouterVocabulary(
        tokenizer, () if eos is None else eos if isinstance(eos, list) else [eos]
    )


async def discover(
    role: Role,
    url: str,
    settings: HTTPSettings,
    *,
    model: str | None = None,
    tokenizer: str | None = None,
    api: str = "auto",
    api_key: str | None = None,
) -> Endpoint | None:
    """A server as it can be used, or ``None`` where it does not answer and too little is given.

    Raises
    ------
    SpecError
        It is used by token ids, and its tokenizer cannot be loaded here.
    """
    found = await ask(url, settings, api_key)
    by_ids = api in ("vllm", "sglang")
    if found is None and (model is None or api == "auto" or (by_ids and not tokenizer)):
        return None
    facts = found or {}
    name = model or str(facts.get("id", ""))
    owner = str(facts.get("owned_by", ""))
    kind: Api = "vllm" if (owner == "vllm" and api == "auto") else "text"
    if api in ("vllm", "sglang"):
        kind = "vllm" if api == "vllm" else "sglang"
    vocabulary = None
    if kind != "text" or tokenizer:
        vocabulary = load_vocabulary(f"{role}_tokenizer", tokenizer or str(facts.get("root", name)))
    lead = None
    if kind == "text" and vocabulary is not None and found is not None:
        lead = await lead_of(url, settings, api_key, name, vocabulary)
    specs_in = FIELDS.get(owner if kind == "text" else kind)
    return Endpoint(role, url, name, kind, vocabulary, _context(facts), lead, specs_in)


def _context(facts: dict[str, Any]) -> int | None:
    """The length of a model's context, as vLLM and SGLang list it, or llama.cpp."""
    meta = facts.get("meta")
    beside = meta if isinstance(meta, dict) else {}
    length = facts.get("max_model_len", beside.get("n_ctx", beside.get("n_ctx_train")))
    return length if isinstance(length, int) and length > 0 else None


async def lead_of(
    url: str, settings: HTTPSettings, api_key: str | None, model: str, vocabulary: RouterVocabulary
) -> str | None:
    """What a server puts before a text of its own accord; ``None`` where it does not say.

    vLLM, SGLang and llama.cpp tell the tokens of a text; what stands before those of the text is
    it. A chat's template has written its own, and two would be another prompt.
    """
    text = "x"
    asked = {
        "model": model, "prompt": text, "content": text, "add_special_tokens": True,
        "add_special": True,
    }  # fmt: skip
    async with client(url, settings, api_key) as http:
        try:
            async with http.stream("POST", "../tokenize", json=asked) as response:
                response.raise_for_status()
                listed = json.loads(await reading.body(response, MAX_LISTING))
            ids = [int(i) for i in listed["tokens"]][:MAX_LEAD]
        except (httpx.HTTPError, ValueError, LookupError, TypeError, RecursionError, OverflowError):
            return None
    plain = vocabulary.encode(text)
    starts = (at for at in range(len(ids)) if ids[at : at + len(plain)] == plain)
    at = next(starts, None)
    return None if at is None else vocabulary.decode(ids[:at]) if at else ""
