"""The tiny reasoner's fast tokenizer and chat template.

Scope: a WordLevel vocabulary of exactly 128 entries (a multiple of 64, so no engine pads it), and a
Qwen-style template. With ``enable_thinking`` true (the default) the generation prompt ends in
``<|im_start|>assistant\\n`` and the model itself writes ``<think>``, as Qwen3 does; with false the
template writes the empty ``<think>\\n\\n</think>\\n\\n``.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
UNKNOWN = "<unk>"
STEP_SEPARATOR = "\n\n"

SPECIAL = [PAD, IM_START, IM_END, THINK, END_THINK, UNKNOWN]
WORDS = [STEP_SEPARATOR, "\n", " ", "system", "user", "assistant", "make", " using"]
WORDS += ["wait", " wait", "Wait", " Wait", *"+-*=|,/.?:"]
VOCABULARY = [*SPECIAL, *WORDS, *map(str, range(100))]

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content and not loop.last %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; numbers of up to two digits, signs and words are one token each."""
    core = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, UNKNOWN)
    )
    pattern = r"\n\n|\n|[0-9]{1,2}| ?[A-Za-z]+|[^A-Za-z0-9\n]"
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    # Marked in the tokenizer itself: transformers 4.57 and 5 disagree about how the configuration
    # lists further special tokens.
    core.add_special_tokens([AddedToken(IM_START, special=True, normalized=False)])
    # Without a decoder WordLevel puts spaces between tokens.
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=IM_END,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        model_input_names=["input_ids", "attention_mask"],
    )
    # The think markers are single tokens but not "special": like Qwen3's, they stay in the text
    # that is decoded with skip_special_tokens=True.
    tokenizer.add_tokens([THINK, END_THINK])
    tokenizer.chat_template = CHAT_TEMPLATE
    if len(tokenizer) != len(VOCABULARY):
        raise ValueError(f"got {len(tokenizer)} entries; {len(VOCABULARY)} expected")
    return tokenizer


def prompt_text(user: str, thinking: bool = True) -> str:
    """Return what the chat template makes of one user message (the tests compare the two)."""
    text = f"{IM_START}user\n{user}{IM_END}\n{IM_START}assistant\n"
    return text if thinking else f"{text}{THINK}\n\n{END_THINK}\n\n"


def reply_text(thinking: str, answer: str) -> str:
    """Return the assistant's whole turn, end mark included."""
    return f"{THINK}\n{thinking}\n\n{END_THINK}\n\n{answer}{IM_END}"
