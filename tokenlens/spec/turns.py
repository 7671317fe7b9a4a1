"""What ends a turn of a conversation: a think marker in front of it is somebody else's word.

Knows a tokenizer by ``decode`` alone; what Hugging Face's tokenizers know beside it is used where
it is there: their added tokens, and their own chat template, which is the model owner's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Of models whose tokenizer comes without a template, or whose template cannot be asked.
NAMES = (
    *("<|im_end|>", "<|im_start|>", "<|im_sep|>", "<|im_user|>", "<|im_assistant|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot|>"),
    *("<end_of_turn>", "<start_of_turn>", "<turn|>", "<|turn>"),
    *("<|end|>", "<|start|>", "<|return|>", "<|call|>", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|observation|>", "<|start_of_role|>", "<|end_of_role|>"),
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "[INST]", "[/INST]"),
    *("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endoftext|>", "<|end_of_text|>"),
    *("</s>", "<eos>"),
)
"""Tokens that stand between turns, where a tokenizer has them."""

USER, ASSISTANT, LAST = "xquserx", "xqassistantx", "xqlastx"
MAX_TEXT = 64
_CONTENTS = re.compile(f"{USER}|{ASSISTANT}|{LAST}")


@dataclass(frozen=True)
class Turns:
    """What stands between the turns of a conversation.

    Attributes
    ----------
    ids
        Tokens.
    texts
        What they are as text, and the texts of templates that need no such token.
    plain
        The latter alone.
    """

    ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    def also(self, ids: Iterable[int]) -> "Turns":
        """The same with more tokens."""
        return replace(self, ids=self.ids | frozenset(ids))

    def follow(self, ids: Sequence[int], tokenizer: Any, text: str | None = None) -> bool:
        """Whether a turn ends in some tokens; their text may be known, and begin before them."""
        if not self.ids.isdisjoint(ids):
            return True
        if not self.plain or tokenizer is None:
            return False
        if text is None:
            text = tokenizer.decode(list(ids))
        return any(plain in text for plain in self.plain)

    def follow_text(self, text: str) -> bool:
        """Whether a turn ends in a text."""
        return any(one in text for one in self.texts)


def turns_of(tokenizer: Any) -> Turns:
    """The ends of turns that a tokenizer tells; none without a tokenizer."""
    if tokenizer is None:
        return Turns()
    added = {text: token for text, token in added_tokens(tokenizer).items() if text.strip()}
    names = [name for name in NAMES if name in added]
    plain = []
    for between in _betweens(tokenizer):
        here = [text for text in added if text in between]
        names += here
        line = between.strip().partition("\n")[0].strip()[:MAX_TEXT]
        if not here and len(line) > 1:
            plain.append(line)
    ids = {added[name] for name in names}
    eos = getattr(tokenizer, "eos_token_id", None)
    if isinstance(eos, int):
        ids.add(eos)
    return Turns(frozenset(ids), tuple(dict.fromkeys([*names, *plain])), tuple(plain))


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Added tokens: they are found in a text before it is cut into words."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if isinstance(added, Mapping):
        return {str(getattr(token, "content", token)): int(i) for i, token in added.items()}
    return {str(text): int(i) for text, i in getattr(tokenizer, "get_added_vocab", dict)().items()}


def _betweens(tokenizer: Any) -> list[str]:
    """What the tokenizer's chat template writes between the contents of a conversation."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    user, assistant, last = (
        {"role": role, "content": content}
        for role, content in (("user", USER), ("assistant", ASSISTANT), ("user", LAST))
    )
    system = {"role": "system", "content": ""}
    # Some templates demand a system message, or no turn but one.
    for messages in (
        [user, assistant, last],
        [system, user, assistant, last],
        [last],
        [system, last],
    ):
        for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
            found = [{**message, "content": content(message["content"])} for message in messages]
            try:
                text = tokenizer.apply_chat_template(
                    found, tokenize=False, add_generation_prompt=True
                )
            except Exception:  # a template may demand anything; the names above are left
                continue
            # Some leave earlier turns out.
            parts = [part for part in _CONTENTS.split(str(text))[1:] if part]
            if parts:
                return parts
    return []
