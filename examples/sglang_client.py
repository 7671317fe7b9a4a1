"""A client of an SGLang server with tokenlens: the ordinary ``openai`` package.

    sh examples/sglang_serve.sh &
    python examples/sglang_client.py http://127.0.0.1:30000/v1 qwen3-soft

What a request wants goes into ``custom_params``: a preset, or a spec. The trace comes back in each
choice's ``meta_info``.
"""

import sys

try:
    import openai
except ImportError as error:
    raise SystemExit(f"this example needs the package openai: {error}") from None


def main() -> None:
    """One request that streams, one that shows its trace, one that is refused."""
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000/v1"
    preset = sys.argv[2] if len(sys.argv) > 2 else "qwen3-soft"
    client = openai.OpenAI(base_url=address, api_key="none")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "make 24 using 3,5,7,2"}]

    def ask(spec, **kwargs):
        return client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=200,
            extra_body={"custom_params": {"tokenlens": spec}},
            **kwargs,
        )

    for chunk in ask(preset, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    response = ask({"preset": preset, "seed": 7})
    print(response.model_dump()["choices"][0]["meta_info"]["tokenlens"]["counts"])

    try:
        ask({"methods": [{"method": "soft_thinking", "top_k": -1}]})
    except openai.BadRequestError as error:
        print(f"refused: {error.message}")


if __name__ == "__main__":
    try:
        main()
    except openai.APIConnectionError:
        raise SystemExit(
            "no server answers: start one (sh examples/sglang_serve.sh), and give its address"
        ) from None
    except openai.APIStatusError as error:
        raise SystemExit(f"the server refused: {error.message}") from None
