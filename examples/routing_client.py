"""A client of a router: the ordinary ``openai`` package, as for any model.

    sh examples/routing_serve.sh &
    python examples/routing_client.py http://127.0.0.1:8000/v1

``route`` asks for the route in the response: who wrote each step, and why.
"""

import sys

try:
    import openai
except ImportError as error:
    raise SystemExit(f"this example needs the package openai: {error}") from None


def main() -> None:
    """One request that streams, one that shows its route, one that is refused."""
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    client = openai.OpenAI(base_url=address, api_key="none")
    model = client.models.list().data[0].id
    asked = {
        "model": model, "max_tokens": 320, "temperature": 0.0,
        "messages": [{"role": "user", "content": "make 6 using 4,11,9"}],
    }  # fmt: skip

    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            for role, usage in chunk.usage.model_dump()["models"].items():
                wrote, thrown = usage["tokens"], usage["discarded_tokens"]
                print(
                    f"\n{role}: {wrote} tokens in {usage['steps']} steps, {thrown} thrown away",
                    end="",
                )
    print()

    response = client.chat.completions.create(**asked, extra_body={"route": True})
    route = response.model_dump()["route"]
    print(f"large: {route['large_step_share']:.0%} of the steps; hand-over: {route['handover']}")
    for step in route["steps"]:
        writers = "+".join(piece["writer"] for piece in step["pieces"])
        signal = "" if step["signal"] is None else f"{step['signal']:.2f} nats"
        print(f"  {writers:5} {signal:9} {step['text']!r}")

    try:
        client.chat.completions.create(**asked, n=2)
    except openai.BadRequestError as error:
        print(f"refused: {error.message}")


if __name__ == "__main__":
    try:
        main()
    except openai.APIConnectionError:
        raise SystemExit(
            "no server answers: start one (sh examples/routing_serve.sh), and give its address"
        ) from None
    except openai.APIStatusError as error:
        raise SystemExit(f"the server refused: {error.message}") from None
