"""The think markers of model families: what opens thinking, what ends it, and who writes it.

Families are *markers*, presets are *methods with their settings*. A spec that names no markers has
them found from the model itself (:mod:`tokenlens.spec.finding`); this table is what is looked at
last, and what completes what was found elsewhere: other wordings, the names of channels behind a
marker, tokens that begin a tool call.

The markers are those of the engines' parsers (vLLM 0.32, ``vllm/reasoning``; SGLang 0.5.23,
``parser/reasoning_parser.py``) and of the models' chat templates.
"""

from dataclasses import dataclass
from typing import Literal

Opens = Literal["model", "template", "implied"]
Written = Literal["token", "tokens", "text"]


@dataclass(frozen=True)
class Family:
    """Models that mark their thinking in the same way.

    Attributes
    ----------
    models
        Who they are, for people.
    starts, ends
        Texts, the usual one first; the first end is the one that is forced.
    written
        ``token``: each is a token of its own. ``tokens``: several, special ones among them.
        ``text``: ordinary tokens, which a vocabulary does not tell.
    opens
        ``model``: it writes the start. ``template``: the chat template does, at the end of the
        prompt. ``implied``: nobody does, a text begins inside of the thinking.
    tools
        What begins a tool call, also inside of thinking that was not ended.
    parsers
        Names of the engines' parsers.
    names
        Parts of a model's name, in lower case.
    """

    models: str
    starts: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    written: Written = "token"
    opens: Opens = "model"
    tools: tuple[str, ...] = ()
    parsers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def think_start(self) -> str:
        """The usual start; empty where nobody writes one."""
        return self.starts[0] if self.starts else ""

    @property
    def think_end(self) -> str:
        """The end that is forced."""
        return self.ends[0]


_TOOL = ("<tool_call>",)
_DEEPSEEK = ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5cDSML\uff5cfunction_calls>")

FAMILIES: dict[str, Family] = {
    "qwen3": Family(
        "Qwen3 with thinking enabled", tools=_TOOL, parsers=("qwen3",), names=("qwen3",)
    ),
    "qwen3.5": Family(
        "Qwen3.5, 3.6, 3.8", opens="template", tools=_TOOL, parsers=("qwen3-thinking",),
        names=("qwen3.5", "qwen3.6", "qwen3.8"),
    ),
    "r1-qwen": Family(
        "DeepSeek-R1-Distill-Qwen", opens="template", names=("r1-distill-qwen",)
    ),
    "r1-llama": Family(
        "DeepSeek-R1-Distill-Llama", opens="template", names=("r1-distill-llama",)
    ),
    "qwq": Family("QwQ-32B", opens="template", tools=_TOOL, names=("qwq",)),
    "deepseek-r1": Family(
        "DeepSeek-R1", opens="template", tools=_DEEPSEEK, parsers=("deepseek_r1", "deepseek-r1"),
        names=("deepseek-r1",),
    ),
    "deepseek-v3": Family(
        "DeepSeek-V3.1 and V3.2", opens="template", tools=_DEEPSEEK,
        parsers=("deepseek_v3", "deepseek-v3"), names=("deepseek-v3.1", "deepseek-v3.2"),
    ),
    "deepseek-v4": Family(
        "DeepSeek-V4 and 4.1", opens="template", tools=_DEEPSEEK,
        parsers=("deepseek_v4", "deepseek_v41", "deepseek-v4", "deepseek-v41"),
        names=("deepseek-v4",),
    ),
    "glm": Family(
        "GLM-4.5 to 4.7, GLM-5", tools=_TOOL, parsers=("glm45", "glm47"),
        names=("glm-4.5", "glm-4.6", "glm-4.7", "glm-5"),
    ),
    "kimi": Family(
        "Kimi K2 Thinking", tools=("<|tool_calls_section_begin|>",), parsers=("kimi_k2",),
        names=("kimi-k2",),
    ),
    "minimax": Family(
        "MiniMax M2", opens="template", tools=("<minimax:tool_call>",),
        parsers=("minimax_m2", "minimax_m2_append_think", "minimax", "minimax-append-think"),
        names=("minimax-m2",),
    ),
    "nemotron": Family(
        "Nemotron 3", opens="template", tools=_TOOL, parsers=("nemotron_v3", "nemotron_3"),
        names=("nemotron-3",),
    ),
    "nemotron-nano": Family("Nemotron Nano 2", opens="template", names=("nemotron-nano",)),
    "ling": Family("Ling 3", opens="template", tools=_TOOL, parsers=("ling3",), names=("ling-3",)),
    "mimo": Family("MiMo", opens="template", tools=_TOOL, parsers=("mimo",), names=("mimo",)),
    "step": Family(
        "Step 3.5", opens="template", tools=_TOOL, parsers=("step3p5",), names=("step-3.5",)
    ),
    "ernie": Family("ERNIE 4.5 Thinking", opens="template", parsers=("ernie45",), names=("ernie",)),
    "poolside": Family("Poolside Laguna", opens="template", tools=_TOOL, parsers=("poolside_v1",)),
    "holo": Family("Holo 2", opens="template", parsers=("holo2",), names=("holo2",)),
    "interns1": Family("Intern-S1", tools=_TOOL, parsers=("interns1",), names=("intern-s1",)),
    "minicpm-v": Family("MiniCPM-V", parsers=("minicpmv",), names=("minicpm-v",)),
    "gigachat": Family("GigaChat 3.5", parsers=("gigachat35",), names=("gigachat",)),
    "iquest": Family("IQuest Q1", parsers=("iquest_q1",), names=("iquest",)),
    "lfm": Family("LFM2.5", tools=("<|tool_call_start|>",), names=("lfm2.5",)),
    "exaone": Family("EXAONE 4", tools=_TOOL, names=("exaone-4",)),
    "phi": Family("Phi-4-reasoning", names=("phi-4-reasoning", "phi-4-mini-reasoning")),
    "smollm": Family("SmolLM3", tools=_TOOL, names=("smollm3",)),
    "granite": Family(
        "Granite 4 thinking", opens="template", tools=_TOOL,
        parsers=("granite_thinking", "granite_thinking_parser"), names=("granite-4",),
    ),
    "olmo": Family(
        "OLMo 3 Think", written="text", opens="template", parsers=("olmo3",), names=("olmo-3",)
    ),
    "llama-nemotron": Family(
        "Llama-Nemotron", written="text", names=("llama-3.1-nemotron", "llama-3_1-nemotron",
        "llama-3_3-nemotron", "llama-3.3-nemotron"),
    ),
    "hunyuan-a13b": Family(
        "Hunyuan-A13B", written="text", tools=("<tool_calls>",),
        parsers=("hunyuan_a13b", "hunyuan"), names=("hunyuan-a13b",),
    ),
    "hunyuan": Family(
        "Hunyuan V3 and V4: a suffix in each tokenizer", ("<think:opensource>",),
        ("</think:opensource>",), tools=("<tool_calls:opensource>",),
        parsers=("hy_v3", "hy_v4"), names=("hy3", "hy4", "hunyuan-v3", "hunyuan-v4"),
    ),
    "mistral": Family(
        "Magistral, Mistral Small 4", ("[THINK]",), ("[/THINK]",), tools=("[TOOL_CALLS]",),
        parsers=("mistral",), names=("magistral", "mistral-small-4"),
    ),
    "gemma4": Family(
        "Gemma 4", ("<|channel>thought\n",), ("<channel|>",), "tokens", tools=("<|tool_call>",),
        parsers=("gemma4",), names=("gemma-4",),
    ),
    "gpt-oss": Family(
        "gpt-oss: the analysis channel", ("<|channel|>analysis<|message|>",), ("<|end|>",),
        "tokens", tools=("<|call|>",), parsers=("openai_gptoss", "gpt-oss"), names=("gpt-oss",),
    ),
    "cohere": Family(
        "Cohere Command A", ("<|START_THINKING|>",), ("<|END_THINKING|>",), opens="template",
        tools=("<|START_ACTION|>",),
        parsers=("cohere_command3", "cohere_command4"), names=("command-a",),
    ),
    "seed": Family(
        "Seed-OSS", ("<seed:think>",), ("</seed:think>",), tools=("<seed:tool_call>",),
        parsers=("seed_oss",), names=("seed-oss",),
    ),
    "minimax-m3": Family(
        "MiniMax M3", ("<mm:think>",), ("</mm:think>",), tools=("<minimax:tool_call>",),
        parsers=("minimax_m3", "minimax-m3"), names=("minimax-m3",),
    ),
    "plamo": Family(
        "PLaMo 3", ("<|plamo:begin_think:plamo|>",), ("<|plamo:end_think:plamo|>",),
        parsers=("plamo3",), names=("plamo-3",),
    ),
    "kimi-k3": Family(
        "Kimi K3", ("<|open|>think<|sep|>",), ("<|close|>think<|sep|>",), "tokens",
        opens="template", tools=("<|open|>tools<|sep|>",), parsers=("kimi_k3",),
        names=("kimi-k3",),
    ),
    "kimi-vl": Family(
        "Kimi-VL Thinking", ("\u25c1think\u25b7",), ("\u25c1/think\u25b7",), parsers=("kimi",),
        names=("kimi-vl",),
    ),
    "k2-horizon": Family(
        "K2 Horizon, by effort", ("<ifm|think>", "<ifm|think_fast>", "<ifm|think_faster>"),
        ("</ifm|think>", "</ifm|think_fast>", "</ifm|think_faster>"),
        parsers=("k2_horizon",), names=("k2-horizon",),
    ),
    "granite-3.2": Family(
        "Granite 3.2, in words",
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        "text", parsers=("granite",), names=("granite-3.2", "granite-3.3"),
    ),
    "inkling": Family(
        "Inkling: several blocks", ("<|content_thinking|>",), ("<|end_message|>",),
        parsers=("inkling",), names=("inkling",),
    ),
    "apertus": Family(
        "Apertus: several blocks", ("<|inner_prefix|>",), ("<|inner_suffix|>",),
        tools=("<|tools_prefix|>",), parsers=("apertus2509",), names=("apertus",),
    ),
    "muse": Family(
        "Muse Glimmer", (" to=self<|message|>",), ("<|eom|>",), "tokens",
        parsers=("muse_glimmer", "muse"), names=("muse-glimmer",),
    ),
    "s1": Family(
        "s1 and s1.1", ("<|im_start|>think",), ("<|im_start|>answer",), "text", names=("/s1",),
    ),
    "step3": Family(
        "Step 3: an end only", (), ("</think>",), "text", opens="implied", parsers=("step3",),
        names=("step3",),
    ),
    "tiny": Family("the tiny reasoner of this repository", names=("tiny-reasoner",)),
}  # fmt: skip
"""By name; of a model that several would fit the one with the longest part of its name counts."""

PRESET_FAMILIES = ("qwen3", "r1-qwen", "r1-llama", "qwq", "tiny")
"""Families of the presets ``FAMILY-RECIPE``, which came before markers were found."""

TOOLS = tuple(dict.fromkeys(tool for family in FAMILIES.values() for tool in family.tools))
"""What begins a tool call in any family."""


def family_of_parser(name: str) -> Family | None:
    """The family of an engine's parser."""
    name = name.lower()
    return next((family for family in FAMILIES.values() if name in family.parsers), None)


def family_of_model(name: str) -> Family | None:
    """The family of a model with a name, such as a hub id or a folder."""
    name = "/" + name.lower().strip("/").replace("_", "-")
    found = [
        (len(part), family)
        for family in FAMILIES.values()
        for part in family.names
        if part.replace("_", "-") in name
    ]
    return max(found, key=lambda item: item[0])[1] if found else None
