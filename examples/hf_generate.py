"""Concept tokens in stock Hugging Face generate(): one spec for a batch, or one for each row.

python examples/hf_generate.py
"""

from pathlib import Path

try:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenlens import assets, load_spec
    from tokenlens.hf import generate_kwargs, traces
except ImportError as error:
    raise SystemExit(
        f"this example needs tokenlens with its hf extra (make install makes .venv): {error}"
    ) from None

HERE = Path(__file__).parent
MODEL = assets.path_of("tiny-reasoner-large")


def main():
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    chats = [
        [{"role": "user", "content": f"make {target} using {numbers}"}]
        for target, numbers in ((24, "3,5,7,2"), (10, "4,3,2"), (10, "4,3,2"))
    ]
    texts = [
        tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    # Row 0 thinks in concept tokens, row 1 with noise, row 2 asks for nothing.
    specs = [load_spec(HERE / "specs" / "soft_thinking.yaml"), "tiny-gumbel", {}]
    kwargs = generate_kwargs(model, tokenizer, specs)
    output = model.generate(**inputs, **kwargs, max_new_tokens=256, do_sample=False)

    for row, trace in enumerate(traces(kwargs)):
        text = tokenizer.decode(output[row, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        print(
            f"row {row}: {trace.counts.latent_steps} of {trace.counts.tokens} tokens were mixtures"
        )
        print("   ", text.split("</think>")[-1].strip())


if __name__ == "__main__":
    main()
