"""Tokens that are never fed as mixtures, and the tokens of blends: texts to ids."""

from collections.abc import Sequence

from tokenlens.core.method import Admission
from tokenlens.methods._shared.gate.fields import MAX_EXEMPT, Blend, Exempt
from tokenlens.spec import SpecError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MATH_SIGNS = (
    *"0123456789",
    *LETTERS,
    *"+-*/=<>()[]{}^_%|!.,:$\\",
    *("\\frac", "\\sqrt", "\\boxed", "\\cdot", "\\times", "\\div", "\\pm", "\\le", "\\ge"),
    *("\\neq", "\\sum", "\\int", "\\pi", "\\left", "\\right", "frac", "sqrt", "boxed", "^{", "_{"),
)
"""Digits, letters, operators and pieces of LaTeX; those that are one token of the tokenizer."""


def exempt_ids(exempt: Exempt, admission: Admission, field: str) -> tuple[int, ...]:
    """Ids of exempt tokens, with and without a blank in front where they are signs of mathematics.

    Raises
    ------
    SpecError
        An id beyond the vocabulary, or more than fit.
    """
    if exempt == "none":
        return ()
    vocabulary = admission.vocabulary
    if exempt == "math":
        texts = [blank + sign for sign in MATH_SIGNS for blank in ("", " ")]
        return vocabulary.single_tokens(texts, field, limit=MAX_EXEMPT)

    def search(_: object = None) -> tuple[int, ...]:
        return tuple(sorted({one_token(token, admission, field) for token in exempt}))

    if all(isinstance(token, int) for token in exempt):
        return search()
    return vocabulary.answer(field, exempt, search, ("exempt", exempt), MAX_EXEMPT)


def one_token(token: str | int, admission: Admission, field: str) -> int:
    """The id of a token given as a text or as an id."""
    if isinstance(token, int):
        if token >= admission.vocab_size:
            allowed = f"token ids below the vocabulary's {admission.vocab_size}"
            raise SpecError.of(field, token, allowed)
        return token
    assert admission.encode is not None
    ids = admission.encode(token, field)
    if len(ids) != 1:
        raise SpecError.of(
            field, token, f"a text that is one token of this tokenizer (this one takes {len(ids)})"
        )
    return ids[0]


def anchor_ids(blend: Blend, admission: Admission, field: str) -> Sequence[int]:
    """The tokens of a blend."""
    if isinstance(blend.tokens, str):
        start = blend.tokens == "think_start"
        marker = admission.start_ids if start else admission.end_ids
        if not marker:
            allowed = "token ids or texts, because this request's phase has no such marker"
            raise SpecError.of(field, blend.tokens, allowed)
        return marker[-1:]
    return [one_token(token, admission, field) for token in blend.tokens]
