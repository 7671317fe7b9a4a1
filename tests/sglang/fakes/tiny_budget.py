"""SGLang's own thinking budget, with the token ids of the tests' random models."""

from sglang.srt.sampling.custom_logit_processor import ThinkingBudgetLogitProcessor

NEW_LINE = 9


class TinyBudget(ThinkingBudgetLogitProcessor):
    """Importable, so that its name travels and not its code."""

    THINKING_START_TOKEN_ID = 6
    THINKING_END_TOKEN_ID = 7
    NEW_LINE_TOKEN_ID = NEW_LINE
