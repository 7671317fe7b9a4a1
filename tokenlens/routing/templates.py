"""A model's chat template, and what of a request it may be given. Knows no HTTP.

The template is the operator's. A client gives it messages and scalars that it reads, by name; never
a template, a tokenizer's option or a structure of its own (vLLM had that as CVE-2025-61620).
"""

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import ext, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenlens.errors import SpecError
from tokenlens.routing.vocabulary import RouterVocabulary

MAX_TEXT = 256
"""Characters of one scalar for a template."""
MAX_NUMBER = 1 << 31
MAX_SAYS = 200
"""Characters of a template's own complaint that are handed on."""

OURS = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "raise_exception", "strftime_now",
})  # fmt: skip
"""Variables that a template gets from elsewhere."""


class _Generation(ext.Extension):
    """The tag around an assistant's turn that transformers knows."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        found: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return found


class ChatTemplate:
    """One tokenizer's template, with what it reads.

    Attributes
    ----------
    variables
        Names that a client may give a scalar.
    attributes
        Names of fields, of a message or anything in it.
    """

    def __init__(self, vocabulary: RouterVocabulary) -> None:
        tokenizer = self._tokenizer = vocabulary.tokenizer
        self._exists = bool(getattr(tokenizer, "chat_template", None))
        self.variables: frozenset[str] = frozenset()
        self.attributes: frozenset[str] = frozenset()
        if not self._exists:
            return
        environment = ImmutableSandboxedEnvironment(extensions=[_Generation, ext.loopcontrols])
        tree = environment.parse(tokenizer.get_chat_template())
        # Whatever is an argument of the call would not reach the template.
        arguments = inspect.signature(type(tokenizer).apply_chat_template).parameters
        self.variables = frozenset(
            meta.find_undeclared_variables(tree)
            - OURS - set(arguments) - set(tokenizer.special_tokens_map)
        )  # fmt: skip
        names = [node.attr for node in tree.find_all(nodes.Getattr)]
        names += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        self.attributes = frozenset(names)

    def render(self, messages: Sequence[Any], variables: Mapping[str, Any]) -> str:
        """The prompt of a conversation.

        Raises
        ------
        SpecError
            There is no template, or it cannot write this conversation.
        """
        if not self._exists:
            raise SpecError.of("tokenizer", "one without a chat template", "one that has one")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False, **variables
            )
        except (jinja2.exceptions.SecurityError, jinja2.exceptions.UndefinedError):
            says = "a message lacks something that it reads"
        except jinja2.exceptions.TemplateError as error:
            # The template's own words, for whoever wrote the messages.
            says = str(error)[:MAX_SAYS]
        except Exception as error:
            # A template may trip over anything.
            says = type(error).__name__
        else:
            return str(text)
        raise SpecError.of(
            "messages", f"{len(messages)} of them", f"what the chat template can write ({says})"
        )


def check_variables(
    given: Mapping[str, Any], templates: Mapping[str, ChatTemplate], field: str
) -> None:
    """Whether a client's variables may go to every model's template.

    Raises
    ------
    SpecError
        Names the first one that may not.
    """
    common = functools.reduce(
        frozenset.__and__, (template.variables for template in templates.values())
    )
    for name, value in given.items():
        where = f"{field}.{name[:64]}"
        if name not in common:
            allowed = ", ".join(sorted(common)) or "nothing"
            reads = [role for role, template in templates.items() if name in template.variables]
            only = f"; only the {reads[0]} model's reads it" if reads else ""
            raise SpecError.of(
                where, value, f"leave it out: what both models' templates read is {allowed}{only}"
            )
        is_scalar = isinstance(value, (bool, int, float, str))
        is_bounded = is_scalar and (
            len(value) <= MAX_TEXT
            if isinstance(value, str)
            else math.isfinite(value) and abs(value) <= MAX_NUMBER
        )
        if not is_bounded:
            allowed = (
                f"true, false, a number up to {MAX_NUMBER}, a text up to {MAX_TEXT} characters"
            )
            raise SpecError.of(where, value, allowed)


def check_messages(
    messages: Sequence[Mapping[str, Any]], templates: Mapping[str, ChatTemplate]
) -> None:
    """Whether every model's template reads what the messages hold.

    Raises
    ------
    SpecError
        Names the first field that one of them would drop.
    """
    common = functools.reduce(
        frozenset.__and__, (template.attributes for template in templates.values())
    )
    for index, message in enumerate(messages):
        for name, value in message.items():
            # Empty is what a client's library sends back of an answer that had none.
            if name in ("role", "content") or name in common or value in ([], {}, ""):
                continue
            if name == "tool_call_id" and message["role"] == "tool":
                # The API wants it; where a template does not, the order says which call it is of.
                continue
            raise SpecError.of(
                f"messages[{index}].{name[:64]}", value,
                "leave it out, because the chat templates of both models do not read it",
            )  # fmt: skip
