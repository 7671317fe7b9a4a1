"""Prompts as each model reads them: checked against its context first, then written off the loop.

Knows the requests' shapes and the tokenizers, no HTTP.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from tokenlens.errors import SpecError
from tokenlens.routing.backend import Context
from tokenlens.routing.protocol import ChatRequest, CompletionRequest
from tokenlens.routing.router import Loop
from tokenlens.routing.settings import Role
from tokenlens.routing.templates import ChatTemplate, check_messages, check_variables
from tokenlens.routing.vocabulary import RouterVocabulary

BLOCK = 1 << 16
"""Characters that are counted at once where a text looks too long."""
SLACK = 16
"""Tokens that a cut in a text may add to its count."""
USUAL = 4
"""Characters of a token in usual texts; longer ones are counted before they are read whole."""
LONGEST = 256
"""Characters of a token at most, where no tokenizer is known."""


class Reader:
    """One model's way of reading a prompt.

    Attributes
    ----------
    limit
        Tokens of its context, where they are known.
    takes_ids
        Whether it is given ids; else text.
    """

    def __init__(
        self, role: Role, words: RouterVocabulary | None, takes_ids: bool, limit: int | None,
        lead: str | None,
    ) -> None:  # fmt: skip
        self.role, self.words, self.takes_ids, self.limit = role, words, takes_ids, limit
        self._lead = lead
        self.template = ChatTemplate(words) if words is not None else None
        longest = max(map(len, words.pieces), default=1) if words is not None else LONGEST
        self.characters = None if limit is None else limit * max(1, longest)

    @cached_property
    def lead(self) -> str:
        """What stands before a text once the model has read it: a BOS, with most models."""
        if self._lead is not None:
            return self._lead
        if self.words is None:
            return ""
        plain, whole = self.words.encode("x"), self.words.tokenizer.encode("x")
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return self.words.decode(whole[:at]) if at else ""

    def check_characters(self, field: str, count: int) -> None:
        """Refuse what cannot fit, before anything is done with it."""
        if self.characters is not None and count > self.characters:
            raise SpecError.of(
                field, f"{count} characters",
                f"what fits into {self.limit} tokens of the {self.role} model",
            )  # fmt: skip

    def check_tokens(self, field: str, count: int) -> None:
        """Refuse what leaves no room for a token."""
        if self.limit is not None and count >= self.limit:
            raise SpecError.of(
                field, f"{count} tokens", f"fewer than the {role_of(self)} context of {self.limit}"
            )

    def encode(self, field: str, text: str) -> list[int]:
        """Ids of a text as it stands; one that is far too long is not read to its end."""
        assert self.words is not None
        self.check_characters(field, len(text))
        if self.limit is not None and len(text) > USUAL * self.limit + BLOCK:
            count = 0
            for at in range(0, len(text), BLOCK):
                count += len(self.words.encode(text[at : at + BLOCK])) - SLACK
                if count >= self.limit:
                    allowed = f"fewer than the {role_of(self)} context of {self.limit}"
                    raise SpecError.of(field, f"{count} tokens and more", allowed)
        ids = self.words.encode(text)
        self.check_tokens(field, len(ids))
        return ids

    def prompt(self, field: str, text: str, *, lead: bool) -> tuple[Context, int]:
        """A text as the model is given it, and its tokens; 0 where nobody here can count them.

        Parameters
        ----------
        lead
            Whether the text wants the BOS that a tokenizer puts before texts: a chat's template has
            written its own.
        """
        has_lead = bool(self.lead) and text.startswith(self.lead)
        if self.words is None:
            self.check_characters(field, len(text))
            return text, 0
        if self.takes_ids:
            if lead and self.lead and not has_lead:
                text = self.lead + text
            ids = tuple(self.encode(field, text))
            return ids, len(ids)
        # Its server puts one before the text: a second one would be another prompt.
        whole = text if has_lead or not self.lead else self.lead + text
        count = len(self.encode(field, whole))
        return text.removeprefix(self.lead), count


def role_of(reader: Reader) -> str:
    """Whose context it is."""
    return f"{reader.role} model's"


@dataclass(frozen=True)
class Prepared:
    """A prompt for each model, and the length of the large one's; 0 where nobody can count it."""

    prompts: Mapping[Role, Context]
    tokens: int


class RouterPrompts:
    """Prompts of one router.

    Parameters
    ----------
    templates
        Tokenizers, where they are known; a server of text may have one for its chats.
    threads
        Of the pool that writes and reads texts.
    """

    def __init__(
        self, router: Loop, templates: Mapping[Role, RouterVocabulary | None], threads: int
    ) -> None:
        self._by_ids = router.handover == "ids"
        self._readers = {
            role: Reader(
                role, templates[role], router.vocabularies[role] is not None,
                getattr(router.backends[role], "max_length", None),
                getattr(router.backends[role], "lead", None),
            )
            for role in router.backends
        }  # fmt: skip
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenlens-prompts")

    @property
    def context(self) -> int | None:
        """The shortest context that is known."""
        return min((r.limit for r in self._readers.values() if r.limit is not None), default=None)

    def check(self, body: ChatRequest | CompletionRequest) -> None:
        """Refuse what cannot be read, at no cost.

        Raises
        ------
        SpecError
            Names the field.
        """
        if isinstance(body, ChatRequest):
            self._check_chat(body)
            return
        texts = [role for role, reader in self._readers.items() if not reader.takes_ids]
        for reader in self._readers.values():
            if isinstance(body.prompt, str):
                reader.check_characters("prompt", len(body.prompt))
                continue
            if not self._by_ids:
                allowed = "text, because the two models have different tokenizers"
                raise SpecError.of("prompt", "token ids", allowed)
            reader.check_tokens("prompt", len(body.prompt))
            assert reader.words is not None
            if (most := max(body.prompt)) >= len(reader.words.pieces):
                allowed = f"ids below {len(reader.words.pieces)}, the size of the vocabulary"
                raise SpecError.of("prompt", most, allowed)
        if texts and not body.add_special_tokens:
            allowed = f"true, because the {texts[0]} model's server is given text and decides"
            raise SpecError.of("add_special_tokens", False, allowed)

    def _check_chat(self, body: ChatRequest) -> None:
        templates: dict[str, ChatTemplate] = {}
        for role, reader in self._readers.items():
            if reader.template is None:
                allowed = f"with a tokenizer: start the router with --{role}-tokenizer"
                raise SpecError.of("messages", f"a chat for the {role} model", allowed)
            templates[role] = reader.template
            if reader.limit is not None and len(body.messages) > reader.limit:
                allowed = f"at most {reader.limit}, the {role} model's context"
                raise SpecError.of("messages", f"{len(body.messages)} of them", allowed)
        check_variables(body.chat_template_kwargs, templates, "chat_template_kwargs")
        if body.reasoning_effort is not None:
            effort = {"reasoning_effort": body.reasoning_effort}
            check_variables(effort, templates, "chat_template_kwargs")
        messages = [message.plain() for message in body.messages]
        check_messages(messages, templates)
        written = sum(len(m.get("content", "")) for m in messages)
        for reader in self._readers.values():
            reader.check_characters("messages", written)

    async def prepare(self, body: ChatRequest | CompletionRequest) -> Prepared:
        """Write and read the prompt, in a thread of the pool.

        Raises
        ------
        SpecError
            It does not fit, or a template cannot write it.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._prepare, body)

    def close(self) -> None:
        """No request will follow."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, body: ChatRequest | CompletionRequest) -> Prepared:
        prompts: dict[Role, Context] = {}
        tokens = 0
        for role, reader in self._readers.items():
            if isinstance(body, ChatRequest):
                assert reader.template is not None
                variables = dict(body.chat_template_kwargs)
                if body.reasoning_effort is not None:
                    variables["reasoning_effort"] = body.reasoning_effort
                text = reader.template.render([m.plain() for m in body.messages], variables)
                prompts[role], tokens = reader.prompt("messages", text, lead=False)
            elif isinstance(body.prompt, str):
                lead = body.add_special_tokens
                prompts[role], tokens = reader.prompt("prompt", body.prompt, lead=lead)
            else:
                prompts[role], tokens = tuple(body.prompt), len(body.prompt)
        return Prepared(prompts, tokens)
