"""Step routing on the embedded pair: `generate()` of the large model, and a router for many texts.

python examples/routing_hf.py
"""

import asyncio

try:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenlens.assets import path_of
    from tokenlens.hf import routed_generate_kwargs
    from tokenlens.routing import Router, Vocabulary
    from tokenlens.routing.hf import HFBackend
except ImportError as error:
    raise SystemExit(
        f"this example needs the hf and route extras (make install makes .venv): {error}"
    ) from None

PROMPTS = ("make 6 using 4,11,9", "make 14 using 12,5,8,5", "make 10 using 3,7,2")
POLICY = {"policy": {"policy": "glimprouter", "threshold": 0.4}}

tokenizer = AutoTokenizer.from_pretrained(path_of("tiny-reasoner-small"))
small, large = (
    AutoModelForCausalLM.from_pretrained(path_of(f"tiny-reasoner-{role}"), dtype=torch.float32)
    for role in ("small", "large")
)

# 1. One call of generate(), as anybody makes it.
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": PROMPTS[0]}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)  # fmt: skip
kwargs = routed_generate_kwargs(small, tokenizer, POLICY)
output = large.generate(**inputs, **kwargs, do_sample=False, max_new_tokens=320)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
print(f"steps by the large model: {kwargs['custom_generate'].traces[0].large_step_share:.0%}")


# 2. A router of one's own: many requests at once, each with its trace.
async def main() -> None:
    words = Vocabulary(tokenizer, large.generation_config.eos_token_id)
    router = Router(
        HFBackend(small, words), HFBackend(large, words), POLICY,
        small_vocabulary=words, large_vocabulary=words,
    )  # fmt: skip
    prompts = [tuple(words.chat([{"role": "user", "content": text}])) for text in PROMPTS]
    for routed in await asyncio.gather(*(router.run(ids, max_tokens=320) for ids in prompts)):
        print(repr(routed.text[-30:]))
        for step in routed.trace.steps[:4]:
            writers = "+".join(piece.writer for piece in step.pieces)
            signal = "" if step.signal is None else f"{step.signal:.2f} nats"
            print(f"  {writers:6} {signal:10} {step.text!r}")
    await router.close()


asyncio.run(main())
