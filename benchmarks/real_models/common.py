"""What the suite and the table share: models, prompts, specs, a way to generate on transformers."""

from functools import cache

import torch
from fetch import default_folder

NAMES = ("smollm2-135m-instruct", "gemma3-270m")
QUESTIONS = [
    "What is 7 + 5, and how do you find it?",
    "Name the days of the week in order.",
    "Why is the sky blue?",
    "Write a short story about a cat and a lighthouse.",
    "How do I boil an egg?",
    "Explain what a prime number is to a child.",
    "Which is larger, 3/4 or 2/3? Why?",
    "Give three tips for learning a language.",
    "A train travels 60 km in 45 minutes. How fast is it in km/h?",
    "What is the difference between weather and climate?",
    "Summarise the plot of Cinderella in four sentences.",
    "How many seconds are there in a day?",
    "Why do leaves change their colour in autumn?",
    "Write a polite e-mail that asks for a day off.",
    "Sort these numbers: 17, 3, 25, 8, 11.",
    "What does a heart do?",
    "Translate to French: Good morning, how are you?",
    "Why is it useful to write tests for a program?",
    "Tom has 12 apples, gives away 5 and buys 3. How many has he?",
    "Describe a city that you would like to visit.",
    "What is the capital of Japan, and what is it known for?",
    "How does a bicycle stay upright?",
]
BEGINNINGS = [
    "The capital of France is",
    "Romeo and Juliet is a play about",
    "Once upon a time there was a fisherman who",
    "The three states of matter are",
    "To make a good cup of tea, first",
    "In mathematics, a prime number is",
    "The sun rises in the east because",
    "My favourite season of the year is",
    "Water boils at a temperature of",
    "The largest planet of the solar system is",
    "A good teacher is somebody who",
    "In 1492, Christopher Columbus",
    "The recipe needs two eggs, some flour and",
    "When the rain stopped, the children",
    "The heart pumps blood through",
    "If you add five and seven, you get",
    "The old house at the end of the street",
    "Bees are important because",
    "Computers store information as",
    "The first thing that she saw in the morning was",
    "There are seven days in a week:",
    "To learn to swim, you should",
]
SOFT = {"method": "soft_thinking", "top_k": 30, "top_p": 0.95}
TOP1 = "top1 of soft"
LATENT = {
    "soft, T 0.6": [{**SOFT, "temperature": 0.6}],
    "soft, T 0.3": [{**SOFT, "temperature": 0.3}],
    "soft + Gumbel, tau 0.5": [{**SOFT, "temperature": 0.6}, {"method": "gumbel_noise"}],
    "soft + Dirichlet, alpha 4": [
        {**SOFT, "temperature": 0.6},
        {"method": "dirichlet_noise", "concentration": 4.0},
    ],
    "soft, a random half": [
        {**SOFT, "temperature": 0.6},
        {"method": "random_route", "latent_share": 0.5},
    ],
    TOP1: [{**SOFT, "temperature": 0.6}, {"method": "top1"}],
}


def folder_of(name):
    """A model's folder, where ``fetch.py`` put it."""
    place = default_folder() / name
    if not (place / "config.json").exists():
        raise SystemExit(f"{place} is not there: make real-models, or python fetch.py")
    return place


@cache
def load(name, dtype="float32"):
    """Model and tokenizer."""
    import transformers

    place = folder_of(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    return model.eval(), tokenizer


def prompts(name, tokenizer, count):
    """Prompts as token ids: chats for the model that can chat, beginnings for the other."""
    if name.startswith("smollm2"):
        return [
            list(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    add_generation_prompt=True,
                    return_dict=True,
                )["input_ids"]
            )
            for text in QUESTIONS[:count]
        ]
    bos = [tokenizer.bos_token_id]
    return [bos + tokenizer.encode(text, add_special_tokens=False) for text in BEGINNINGS[:count]]


def spec(methods, seed=0, phase="none"):
    """A spec of a model without markers: all that it writes is thought, from the first token on."""
    return {"methods": methods, "phase": phase, "seed": seed, "trace": {"level": "full"}}


def generate(model, tokenizer, rows, **settings):
    """New ids and traces of one batch.

    Parameters
    ----------
    rows
        Of each a prompt and a spec; a spec of None is the model's own decoding.
    """
    from tokenlens.hf import generate_kwargs, traces

    width = max(len(prompt) for prompt, _ in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt, _ in rows])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in rows])
    kwargs = generate_kwargs(model, tokenizer, [given or {"methods": []} for _, given in rows])
    plain = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=mask, pad_token_id=pad, **{**plain, **settings}, **kwargs
        )  # fmt: skip
    new = [ended(row[width:].tolist(), tokenizer, model) for row in out]
    return new, traces(kwargs)


def ended(ids, tokenizer, model):
    """Ids without what is behind the end, and without the end."""
    eos = model.generation_config.eos_token_id
    stops = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    return ids[: next((i for i, one in enumerate(ids) if one in stops), len(ids))]
