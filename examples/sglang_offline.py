"""Soft thinking inside stock SGLang, offline: an ordinary engine, and a spec for each request.

    python examples/sglang_offline.py                      # the tiny reasoner
    python examples/sglang_offline.py Qwen/Qwen3-0.6B qwen3-soft
    python examples/sglang_offline.py tiny-reasoner-latent tiny-soft '{"device": "cpu"}'

Requests with different specs, and with none, share a batch.
"""

import json
import sys

try:
    import sglang
    import torch

    import tokenlens.sglang
    from tokenlens.assets import path_of
except (ImportError, RuntimeError) as error:
    raise SystemExit(
        "this example needs SGLang, whole, and tokenlens in one environment"
        f" (docs/sglang.md says how): {error}"
    ) from None

CPU = '{"device": "cpu"}'


def main() -> None:
    """One prompt three times: plain, in concept tokens, and with every step recorded."""
    model = path_of(sys.argv[1] if len(sys.argv) > 1 else "tiny-reasoner-latent")
    preset = sys.argv[2] if len(sys.argv) > 2 else "tiny-soft"
    # Further arguments of sglang.Engine as JSON, e.g. '{"device": "cpu"}'.
    try:
        settings = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    except ValueError:
        raise SystemExit(
            f"arguments of sglang.Engine: got {sys.argv[3]!r}; allowed: JSON"
        ) from None
    if "device" not in settings and not torch.accelerator.is_available():
        raise SystemExit(
            "this machine has no accelerator: pass SGLang's arguments as JSON in third place, e.g."
            f" {sys.argv[0]} tiny-reasoner-latent tiny-soft '{CPU}' (SGLang for CPUs)"
        )
    try:
        engine = tokenlens.sglang.engine(model_path=str(model), **settings)
    except Exception as error:
        raise SystemExit(
            f"SGLang {sglang.__version__} did not start; its messages say more: {error}"
        ) from None
    try:
        question = [{"role": "user", "content": "make 6 using 4,11,9"}]
        prompt = engine.tokenizer_manager.tokenizer.apply_chat_template(
            question, add_generation_prompt=True, tokenize=False
        )
        sampling = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 200}
        recorded = {"preset": preset, "trace": {"level": "full"}}
        specs = {"plain": None, "soft": preset, "soft, recorded": recorded}
        params = [
            {**sampling, "custom_params": tokenlens.sglang.custom_params(spec)}
            if spec
            else sampling
            for spec in specs.values()
        ]
        outputs = engine.generate([prompt] * len(params), params)
        for name, output in zip(specs, outputs):
            print(f"--- {name}\n{output['text'].strip()}")
            trace = tokenlens.sglang.trace(output)
            if trace is not None:
                counts = trace.counts
                print(f"[{counts.latent_steps} of {counts.tokens} tokens fed as mixtures]")
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
