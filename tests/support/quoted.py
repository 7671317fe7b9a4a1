"""Conversations in which somebody writes a think marker in an earlier turn, and open thoughts."""

START, END = "<think>", "</think>"
ROLES = (
    ("system", "system", "user"),
    ("system", "user", "system"),
    ("system", "user", "assistant", "system", "user"),
    ("user", "system", "system"),
)


def prompts(tokenizer):
    """Token ids by name, and the phase that their first decision is in."""
    found = {}
    for number, roles in enumerate(ROLES):
        for place, role in enumerate(roles):
            contents = ["make 6 using 4,11,9"] * len(roles)
            # An assistant's turn that was cut off inside its thinking is one of them.
            contents[place] = f"2, {START} 4,11"
            found[f"{number}, {role} {place}"] = _ids(tokenizer, roles, contents), "prompt"
    text = f"{START} 4"
    found["gone on with"] = _ids(tokenizer, roles, contents) + _encode(tokenizer, text), "thinking"
    closed = f"{START} 4 {END}\n\n"
    found["ended"] = _ids(tokenizer, roles, contents) + _encode(tokenizer, closed), "answer"
    return found


def _ids(tokenizer, roles, contents):
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return _encode(tokenizer, text)


def _encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)
