"""What the routing tests share: the tiny reasoners, and a model that writes a script."""

import asyncio
import copy
import functools
import json
import threading
from dataclasses import replace

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tokenlens.assets import path_of
from tokenlens.evaluation.countdown import problems, prompt
from tokenlens.routing import Chunk, FirstTokenSignals, RouterVocabulary

EOS_IDS = (2, 0)
MAX_TOKENS = 320
# A question that the tiny vocabulary can write; what its answer means is another matter.
VERBAL = {"score": "verbal", "threshold": 8.0, "question": "9-5=4?", "answer_prefix": "<think>\n"}


@functools.cache
def tokenizer():
    """The tiny reasoners'."""
    return AutoTokenizer.from_pretrained(path_of("tiny-reasoner-small"))


@functools.cache
def vocabulary():
    """The same as routing sees it."""
    return RouterVocabulary(tokenizer(), EOS_IDS)


@functools.cache
def model(role):
    """A tiny reasoner in float32."""
    torch.set_num_threads(1)
    path = path_of(f"tiny-reasoner-{role}")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@functools.cache
def prompts(count=8):
    """Prompts of held-out problems, as ids."""
    chosen = [*problems("dev", 3, count // 4), *problems("dev", 4, count - count // 4)]
    return [tuple(vocabulary().chat([{"role": "user", "content": prompt(one)}])) for one in chosen]


@functools.cache
def alone(role, ids, max_new_tokens=MAX_TOKENS):
    """What stock ``generate()`` of one model writes, greedily."""
    inputs = torch.tensor([ids])
    output = model(role).generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    return output[0, len(ids) :].tolist()


def turn(token):
    """A token's id in the other vocabulary."""
    return (token + 7) % len(tokenizer())


@functools.cache
def turned():
    """The large model under another vocabulary: the same words, each with another id."""
    data = json.loads(tokenizer().backend_tokenizer.to_str())
    data["model"]["vocab"] = {word: turn(i) for word, i in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        token["id"] = turn(token["id"])
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        eos_token=tokenizer().eos_token,
        chat_template=tokenizer().chat_template,
    )
    order = torch.tensor([turn(i) for i in range(len(tokenizer()))]).argsort()
    network = copy.deepcopy(model("large"))
    with torch.no_grad():
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            network.get_parameter(name).copy_(model("large").get_parameter(name)[order])
    ends = [turn(i) for i in EOS_IDS]
    network.config.eos_token_id = ends[0]
    network.generation_config.eos_token_id = ends
    return RouterVocabulary(other, ends), network


class Scripted:
    """A backend that writes what it is told to, token for token; a loop needs no real model.

    ``script`` maps what has been generated so far (text) to what comes next (text).
    """

    gives_full_entropy = True

    def __init__(self, script, entropy=0.0, prompt_length=1):
        self.script, self.entropy, self.start = script, entropy, prompt_length
        self.asked = []

    async def generate(self, ask):
        words = vocabulary()
        self.asked.append(ask)
        before = words.decode(ask.context[self.start :])
        ids = words.encode(self.script(before))
        entropy = self.entropy(before) if callable(self.entropy) else self.entropy
        facts = FirstTokenSignals(((words.piece(ids[0]), -0.1),), entropy) if ids else None
        made = []
        for token in ids[: ask.max_tokens]:
            made.append(token)
            end = ask.matcher.push(token)
            if end is not None:
                finish = "eos" if end == "eos" else "stop"
                yield Chunk(tuple(made), "", len(made), facts, finish)
                return
        yield Chunk(tuple(made), "", len(made), facts, "length")

    async def log_probs(self, session, context, ids):
        return [-0.01] * len(ids)

    async def release(self, session):
        self.released = session

    async def close(self):
        pass


class Held:
    """A real backend whose calls stop behind their first chunk until they are let go.

    A test can then disturb a text in its middle on a machine of any speed.
    """

    gives_full_entropy = True

    def __init__(self, backend, let_go=None):
        self._backend = backend
        self.let_go = let_go or threading.Event()
        self.holding = 0

    async def generate(self, ask):
        chunks = self._backend.generate(replace(ask, stream=True))
        try:
            yield await anext(chunks)
            self.holding += 1
            try:
                while not self.let_go.is_set():
                    await asyncio.sleep(0.01)
            finally:
                self.holding -= 1
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    async def log_probs(self, session, context, ids):
        return await self._backend.log_probs(session, context, ids)

    async def release(self, session):
        await self._backend.release(session)

    async def close(self):
        await self._backend.close()


def byte_level_chat(template, adds_bos):
    """A byte-level tokenizer with a chat template; it puts a BOS before texts, or does not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", chat_template=template
    )
