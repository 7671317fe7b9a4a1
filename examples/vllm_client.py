"""A client of a vLLM server with tokenlens: the ordinary ``openai`` package.

    sh examples/vllm_serve.sh &
    python examples/vllm_client.py http://127.0.0.1:8000/v1 qwen3-soft

What a request wants goes into ``vllm_xargs``: a preset, single fields, or a whole spec as JSON. The
trace comes back in the response, or in the last chunk of a stream.
"""

import sys

try:
    import openai
except ImportError as error:
    raise SystemExit(f"this example needs the package openai: {error}") from None


def main() -> None:
    """One request that streams, and one that shows its trace."""
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    # For the tiny reasoner: tiny-soft.
    preset = sys.argv[2] if len(sys.argv) > 2 else "qwen3-soft"
    client = openai.OpenAI(base_url=address, api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "make 24 using 3,5,7,2"}]

    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=200,
        stream=True,
        extra_body={"vllm_xargs": {"tokenlens_preset": preset}},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
            if chunk.choices[0].finish_reason:
                streamed = chunk.model_dump()["kv_transfer_params"]["tokenlens"]
    print(f"\n{streamed['counts']}")

    response = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=200,
        extra_body={
            "vllm_xargs": {"tokenlens_preset": preset, "tokenlens_soft_thinking.max_entries": 10}
        },
    )
    trace = response.model_dump()["kv_transfer_params"]["tokenlens"]
    print(trace["counts"])

    try:
        client.chat.completions.create(
            model=model,
            messages=messages,
            extra_body={"vllm_xargs": {"tokenlens_soft_thinking.top_k": -1}},
        )
    except openai.BadRequestError as error:
        print(f"refused: {error.message}")


if __name__ == "__main__":
    try:
        main()
    except openai.APIConnectionError:
        raise SystemExit(
            "no server answers: start one (sh examples/vllm_serve.sh), and give its address"
        ) from None
    except openai.APIStatusError as error:
        raise SystemExit(f"the server refused: {error.message}") from None
