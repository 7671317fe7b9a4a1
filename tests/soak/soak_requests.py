"""What the clients of the soak send: plain requests, specs, hostile bodies, aborts."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from soak_servers import NAME

from tokenlens.spec import preset_names
from tokenlens.spec.registry import METHOD_CONFIGS, NEEDS_LATENT

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
OPENED = "<|im_start|>user\nmake {} using {}<|im_end|>\n<|im_start|>assistant\n<think>\n"
REQUIRED = {
    "answer_now": {"after": 12},
    "thinking_budget": {"budget": 12},
    "alpha_one": {"average_thinking": 10},
}
HOSTED = {"mixture": "top_k", "noise_scale": 0}
"""What engines that schedule requests need where a method's default asks for more."""


@dataclass(frozen=True)
class Sent:
    """One request."""

    kind: str
    path: str
    content: bytes
    stream: bool = False
    # Seconds after which the client leaves, or chunks of a stream
    leaves_after: float | None = None
    # The text that a plain greedy request must give
    expected: str | None = None
    # Statuses that are right; ``None``: any below 500
    statuses: tuple[int, ...] | None = (200,)
    headers: dict[str, str] = field(default_factory=dict)


def problem(draw: random.Random) -> str:
    """A prompt whose thinking is open."""
    numbers = [draw.randint(2, 9) for _ in range(draw.choice([3, 4]))]
    return OPENED.format(draw.randint(10, 60), ",".join(map(str, numbers)))


def body_of(prompt: str, tokens: int = 48, **fields: Any) -> dict[str, Any]:
    """A greedy completion."""
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **fields}


def encoded(body: Any) -> bytes:
    """As JSON, with NaN where Python has one."""
    return json.dumps(body).encode()


def methods_of(name: str, **settings: Any) -> list[dict[str, Any]]:
    """A spec's methods with this one among them."""
    config: dict[str, Any] = {"method": name, **REQUIRED.get(name, {}), **settings}
    fields = METHOD_CONFIGS[name].model_fields
    config = {**{k: v for k, v in HOSTED.items() if k in fields}, **config}
    return [{"method": "soft_thinking"}, config] if name in NEEDS_LATENT else [config]


def good_specs() -> dict[str, Any]:
    """Every method in both profiles, alone or beside what it needs, and every preset."""
    specs: dict[str, Any] = {}
    for name in METHOD_CONFIGS:
        for profile in ("default", "published"):
            specs[f"{name}/{profile}"] = {"methods": methods_of(name, profile=profile)}
    control = {"after": 1, "converge": "so ", "terminate": "</think>\n", "answer_tokens": 9}
    gate = {"of": "raw", "trend": True, "first": "latent", "dwell_discrete": 1}
    for name in ("swi_reasoning", "lead"):
        settings = {"profile": "published", "switch_control": control, "gate": gate, "enter": None}
        specs[f"{name}/control"] = {"methods": methods_of(name, **settings)}
    mixed = [{"method": "soft_thinking"}, {"method": "soft_grpo_noise"}, {"method": "nowait"}]
    specs["mixed"] = {"methods": mixed, "trace": {"level": "full"}}
    return specs | {name: name for name in preset_names()}


def ends_of(name: str) -> list[tuple[str, Any]]:
    """The ends of the range of each number of a method, and values just inside."""
    found: list[tuple[str, Any]] = []
    for key, info in METHOD_CONFIGS[name].model_fields.items():
        for bound in info.metadata:
            if isinstance(bound, Ge):
                found.append((key, bound.ge))
            if isinstance(bound, Le):
                found.append((key, bound.le))
            if isinstance(bound, Gt):
                found += [(key, bound.gt + tiny) for tiny in (5e-324, 1e-300, 1e-50, 1e-30, 1e-6)]
            if isinstance(bound, Lt):
                found += [(key, bound.lt - 1e-16), (key, 1 - 1e-7)]
    return found


def end_specs() -> list[dict[str, Any]]:
    """Specs at the ends of all ranges: a 400, or a request like any other."""
    return [
        {"methods": methods_of(name, **{key: value})}
        for name in METHOD_CONFIGS
        for key, value in ends_of(name)
    ]


def wrong_specs() -> list[Any]:
    """Specs that no server may take."""
    soft = {"method": "soft_thinking"}
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    return [
        {"methods": [{"method": "soft"}]},
        {"methods": [{**soft, "topk": 3}]},
        {"methods": [{**soft, "top_k": "3"}]},
        {"methods": [{**soft, "top_k": -1}]},
        {"methods": [{**soft, "temperature": float("nan")}]},
        {"methods": [{**soft, "temperature": 1e308}]},
        {"methods": [soft, soft]},
        {"methods": [soft, {"method": "lead"}]},
        {"methods": [soft, {"method": "gumbel_noise"}, {"method": "soft_grpo_noise"}]},
        {"methods": [{"method": "gumbel_noise"}]},
        {"methods": [{"method": "x" * 50_000}]},
        {"methods": [{**soft, **{f"field{i}": i for i in range(3000)}}]},
        {"methods": [soft] * 2000},
        {"methods": soft},
        {"methods": deep},
        {"methods": [{"method": "coconut"}]},
        {"methods": [{"method": "swi_reasoning", "mixture": "full"}]},
        {"methods": [{"method": "nowait", "words": ["x" * 60] * 5000}]},
        {"methods": [soft], "seed": 2**70},
        {"methods": [soft], "phase": {"think_start": [10**9]}},
        {"methods": [soft], "phase": {"think_start": "<t>", "think_end": "<t>"}},
        {"methods": [soft], "trace": {"level": "all"}},
        {"methods": [soft], "text": "x" * 100_000},
        "no-such-preset",
        "{" * 1000,
        7,
        [],
    ]


def wrong_bodies() -> list[tuple[str, bytes, dict[str, str]]]:
    """Bodies that are wrong before a spec is looked at, or beside one."""
    plain = body_of("2+2")
    soft = {"methods": [{"method": "soft_thinking"}]}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    both = {"custom_params": {"tokenlens": soft}, "vllm_xargs": {"tokenlens": json.dumps(soft)}}
    places = [
        {"tokenlens": soft},
        {"extra_body": both},
        {"metadata": {"tokenlens": "tiny-soft"}},
        {"custom_params": soft},
        {"custom_params": {"tokenlens": {"tokenlens": soft}}},
        {"vllm_xargs": {"tokenlens_soft_thinking.top_k": "many"}},
        {"vllm_xargs": {"tokenlens_": 1}},
        {"vllm_xargs": {"_tokenlens_sample": 1}},
        {"custom_params": {"tokenlens": "tiny-soft", "_tokenlens_sample": 1}},
        {"vllm_xargs": {"tokenlens": "tiny-soft", "tokenlens_preset": "tiny-gumbel"}},
        {**both, "regex": "a+"},
        {**both, "response_format": schema},
        {**both, "structured_outputs": {"regex": "a+"}},
        {**both, "n": 0},
        {**both, "max_tokens": -1},
        {**both, "temperature": -5},
        {**both, "prompt": [10**9]},
        {**both, "prompt": []},
        {**both, "prompt": "x " * 5000},
        {**both, "logit_bias": {"999999999": 5}},
        {**both, "stop": [""]},
        {**both, "use_beam_search": True, "n": 2},
    ]
    bodies = [(COMPLETIONS, encoded({**plain, **place}), {}) for place in places]
    chat = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    bodies += [
        (CHAT, encoded({**chat, **both, "tools": [tool], "tool_choice": "required"}), {}),
        (CHAT, encoded({**chat, **both, "messages": []}), {}),
        (CHAT, encoded({**chat, **both, "messages": [{"role": "<think>"}]}), {}),
        (COMPLETIONS, b"", {}),
        (COMPLETIONS, b"{", {}),
        (COMPLETIONS, b"[" * 20_000, {}),
        (COMPLETIONS, b'{"model": "tiny", "prompt": "' + b"x" * 3_000_000 + b'"}', {}),
        (COMPLETIONS, encoded({**plain, **both}), {"Content-Type": "text/plain"}),
        (COMPLETIONS, encoded({**plain, "model": "other"}), {}),
    ]
    return bodies


class Mix:
    """Draws requests, the same for a seed."""

    def __init__(self, server: Any, alone: dict[str, str], seed: int) -> None:
        self.server, self.alone = server, alone
        self.draw = random.Random(seed)
        self.good = list(good_specs().items())
        self.ends, self.wrong, self.bodies = end_specs(), wrong_specs(), wrong_bodies()
        # Status that a spec had on the idle server
        self.statuses: dict[str, int] = {}

    def spec(self, body: dict[str, Any], spec: Any) -> dict[str, Any]:
        """A body with a spec, as this server's clients write it."""
        if self.server.name == "vllm" and not isinstance(spec, str):
            spec = json.dumps(spec)
        return dict(self.server.with_spec(body, spec))

    def plain(self) -> Sent:
        """Greedy and compared with the idle server."""
        prompt = self.draw.choice(list(self.alone))
        stream = self.draw.random() < 0.3
        body = body_of(prompt, stream=stream)
        return Sent("plain", COMPLETIONS, encoded(body), stream=stream, expected=self.alone[prompt])

    def sampled(self) -> Sent:
        """Two samples, not compared."""
        stream = self.draw.random() < 0.3
        body = body_of(problem(self.draw), stream=stream, n=2) | {"temperature": 1.0}
        return Sent("plain, sampled", COMPLETIONS, encoded(body), stream=stream)

    def asking(self) -> Sent:
        """A spec that the server hosts, or refuses as it did when it was idle."""
        name, spec = self.draw.choice(self.good)
        if isinstance(spec, dict) and self.draw.random() < 0.5:
            spec = {**spec, "seed": self.draw.randrange(1 << 31)}
        stream, n = self.draw.random() < 0.3, self.draw.choice([1, 1, 2])
        temperature = self.draw.choice([0, 0.7])
        fields = {"stream": stream, "n": n, "temperature": temperature}
        if n > 1 and temperature == 0:
            fields["n"] = 1
        if self.draw.random() < 0.3:
            question = [{"role": "user", "content": "make 24 using 3,5,7,2"}]
            body = {"model": NAME, "messages": question, "max_tokens": 40, **fields}
            path = CHAT
        else:
            body, path = body_of(problem(self.draw), tokens=40, **fields), COMPLETIONS
        status = self.statuses.get(name, 200)
        content = encoded(self.spec(body, spec))
        return Sent("spec", path, content, stream=stream, statuses=(status,))

    def hostile(self) -> Sent:
        """What must harm nobody."""
        kind = self.draw.random()
        body = body_of(problem(self.draw), tokens=24)
        if kind < 0.35:
            content = encoded(self.spec(body, self.draw.choice(self.ends)))
            return Sent("ends of ranges", COMPLETIONS, content, statuses=None)
        if kind < 0.7:
            content = encoded(self.spec(body, self.draw.choice(self.wrong)))
            return Sent("wrong spec", COMPLETIONS, content, statuses=(400, 413, 422))
        path, content, headers = self.draw.choice(self.bodies)
        return Sent("wrong body", path, content, statuses=None, headers=headers)

    def leaving(self) -> Sent:
        """A client that goes away."""
        stream = self.draw.random() < 0.7
        after = self.draw.randint(1, 6) if stream else self.draw.uniform(0.05, 1.0)
        body = body_of(problem(self.draw), tokens=160, stream=stream)
        if self.draw.random() < 0.7:
            body = self.spec(body, self.draw.choice(["tiny-soft", "tiny-gumbel"]))
        return Sent("abort", COMPLETIONS, encoded(body), stream=stream, leaves_after=after)

    def requests(self, number: int) -> list[Sent]:
        """A shuffled mix."""
        shares = {self.plain: 30, self.sampled: 5, self.asking: 30, self.hostile: 20}
        shares[self.leaving] = 15
        kinds = self.draw.choices(list(shares), list(shares.values()), k=number)
        return [kind() for kind in kinds]
