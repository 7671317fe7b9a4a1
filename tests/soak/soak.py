"""A soak of a real server: many clients, mixed specs, hostile ones, aborts, a small cache.

    python tests/soak/soak.py vllm
    python tests/soak/soak.py sglang --requests 200 --clients 16

Starts the server (in the environment of this Python), asks it alone what plain greedy requests
give, and then all at once. Ends with a table; anything that is not as it should be is a line with
``FAILED`` and the exit status 1. What counts:

* every plain greedy request gives the text that it gave on the idle server,
* every request that stays gets an answer, with the status that is right for it and never a 5xx,
* sequences were preempted, or the cache was not small,
* afterwards the gauges are at zero, the memory of all processes is where it was after two
  of five parts, and the server answers.

Prompts whose greedy tokens hang on rounding, which differs with the size of a batch, are left out.
"""

import argparse
import asyncio
import collections
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx  # after the path
from soak_requests import COMPLETIONS, Mix, Sent, body_of, encoded, problem
from soak_servers import SERVERS, Server

PROMPTS = 60
"""That are tried on the idle server."""
CLOSEST = 0.05
"""The least difference of the first two log-probabilities of a step of a prompt that is used."""
PARTS, WARM_PARTS = 5, 2
"""Parts of the run, after each of which the memory is read, and those that only warm it up."""
PATIENCE = 240
"""Seconds after which a request is lost."""
DRAIN = 30
"""Seconds in which gauges must come to zero."""
GROWTH_MIB = 24
"""That all processes may grow by in the other parts."""
ENDED_WELL = {"stop", "length"}


class Answer:
    """What came back."""

    def __init__(self, sent: Sent) -> None:
        self.sent = sent
        self.status = 0
        self.texts: dict[int, str] = {}
        self.finished: dict[int, str] = {}
        self.problem: str | None = None
        self.shown = repr(sent.content[:400])
        self.seconds = 0.0

    def add(self, body: dict) -> None:
        """A response's body, or a chunk of one."""
        for choice in body.get("choices", ()):
            index = choice["index"]
            text = choice.get("text") or ""
            self.texts[index] = self.texts.get(index, "") + text
            if choice.get("finish_reason"):
                self.finished[index] = choice["finish_reason"]
        if "error" in body:
            # A stream that has begun has a status already.
            self.status = int(body["error"].get("code") or 500)

    def judge(self) -> None:
        """Say what is wrong, if anything."""
        sent = self.sent
        if self.problem is not None or sent.leaves_after is not None:
            return
        if self.status >= 500:
            self.problem = f"status {self.status}"
        elif sent.statuses is not None and self.status not in sent.statuses:
            self.problem = f"status {self.status}, not {sent.statuses}"
        elif self.status == 200 and not (set(self.finished.values()) <= ENDED_WELL):
            self.problem = f"finished: {sorted(set(self.finished.values()))}"
        elif sent.expected is not None and self.texts != {0: sent.expected}:
            self.problem = "another text than alone"
            self.shown = f"{self.texts.get(0)!r} where {sent.expected!r} was alone"


async def ask(client: httpx.AsyncClient, sent: Sent) -> Answer:
    """Send one request, and leave early if it says so."""
    answer, start = Answer(sent), time.monotonic()
    try:
        patience = PATIENCE
        if sent.leaves_after is not None and not sent.stream:
            patience = sent.leaves_after
        await asyncio.wait_for(_exchange(client, answer), patience)
    except TimeoutError:
        if sent.leaves_after is None:
            answer.problem = f"lost: no answer in {PATIENCE} s"
    except (httpx.HTTPError, ValueError) as error:
        answer.problem = f"lost: {type(error).__name__} {str(error)[:100]}"
    answer.seconds = time.monotonic() - start
    answer.judge()
    return answer


async def _exchange(client: httpx.AsyncClient, answer: Answer) -> None:
    sent = answer.sent
    headers = {"Content-Type": "application/json", **sent.headers}
    request = client.build_request("POST", sent.path, content=sent.content, headers=headers)
    response = await client.send(request, stream=True)
    answer.status = response.status_code
    chunks = 0
    try:
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        if not streamed:
            body = await response.aread()
            if response.status_code == 200:
                answer.add(json.loads(body))
            return
        async for line in lines_of(response):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                answer.add(json.loads(line.removeprefix(b"data: ")))
                chunks += 1
                if sent.leaves_after is not None and chunks >= sent.leaves_after:
                    return
    finally:
        await response.aclose()


async def lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines of a stream. httpx would also end them at characters that a text may hold."""
    rest = b""
    async for piece in response.aiter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")


async def ask_all(server: Server, requests: list[Sent], clients: int) -> list[Answer]:
    """All of them, from so many clients that each wait for their answer."""
    waiting = collections.deque(requests)
    answers = []

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            answers.append(await ask(client, waiting.popleft()))

    # A connection each: one that is kept may be closed by the server while a request is on its way.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=server.address, timeout=PATIENCE, limits=limits, trust_env=False
    ) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return answers


def alone(server: Server, seed: int) -> dict[str, str]:
    """Texts of plain greedy requests, each on the idle server, that do not hang on rounding."""
    draw, found = random.Random(seed), {}
    with httpx.Client(base_url=server.address, timeout=PATIENCE, trust_env=False) as client:
        for prompt in {problem(draw): None for _ in range(PROMPTS)}:
            response = client.post(COMPLETIONS, json=body_of(prompt, logprobs=2))
            choice = response.raise_for_status().json()["choices"][0]
            tops = [sorted(top.values())[-2:] for top in choice["logprobs"]["top_logprobs"]]
            if min(second - first for first, second in tops) > CLOSEST:
                found[prompt] = choice["text"]
    return found


async def census(server: Server, mix: Mix) -> None:
    """The status of each good spec on a server that has little else to do."""
    body = body_of(problem(random.Random(0)), tokens=4)
    sent = [
        Sent("census", COMPLETIONS, encoded(mix.spec(body, spec)), statuses=None)
        for _, spec in mix.good
    ]
    names = {id(one): name for one, (name, _) in zip(sent, mix.good, strict=True)}
    for answer in await ask_all(server, sent, 8):
        mix.statuses[names[id(answer.sent)]] = answer.status


def drained(server: Server) -> dict[str, float]:
    """The gauges once they are at zero, or when patience ends."""
    deadline = time.monotonic() + DRAIN
    while True:
        metrics = server.metrics()
        gauges = {name: metrics.get(name, -1.0) for name in server.gauges}
        if not any(gauges.values()) or time.monotonic() > deadline:
            return gauges
        time.sleep(0.5)


class Report:
    """Lines of the table."""

    def __init__(self) -> None:
        self.failed = False

    def line(self, name: str, found: str, right: bool = True) -> None:
        """One line, printed at once."""
        self.failed = self.failed or not right
        print(f"{'ok' if right else 'FAILED':7}{name:38}{found}", flush=True)


def report_answers(report: Report, answers: list[Answer]) -> None:
    """What came of each kind of request."""
    kinds = collections.defaultdict(list)
    for answer in answers:
        kinds[answer.sent.kind].append(answer)
    for kind, group in sorted(kinds.items()):
        statuses = collections.Counter(answer.status for answer in group)
        wrong = [answer for answer in group if answer.problem is not None]
        seconds = sorted(answer.seconds for answer in group)
        shown = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
        timing = f"median {statistics.median(seconds):.2f} s, longest {seconds[-1]:.1f} s"
        report.line(kind, f"{len(group)} ({shown}), wrong {len(wrong)}; {timing}", not wrong)
        problems = collections.Counter(answer.problem for answer in wrong)
        for problem_text, number in problems.most_common(5):
            example = next(a for a in wrong if a.problem == problem_text)
            print(f"         {number} x {problem_text}; e.g. {example.shown}")


def soak(server: Server, arguments: argparse.Namespace, report: Report) -> bool:
    """The whole of it; whether everything is right."""
    start = time.monotonic()
    texts = alone(server, arguments.seed)
    report.line(
        "prompts that do not hang on rounding", f"{len(texts)} of {PROMPTS}", len(texts) > 9
    )
    mix = Mix(server, texts, arguments.seed)
    asyncio.run(census(server, mix))
    counted = collections.Counter(mix.statuses.values())
    report.line("specs on the idle server", str(dict(counted)), set(counted) <= {200, 400})
    requests = mix.requests(arguments.requests)
    part, answers, sizes = -(-len(requests) // PARTS), [], []
    for start_of_part in range(0, len(requests), part):
        some = requests[start_of_part : start_of_part + part]
        answers += asyncio.run(ask_all(server, some, arguments.clients))
        server.process.check()
        drained(server)
        sizes.append(server.rss() / 2**20)
    report_answers(report, answers)
    lost = len(requests) - len(answers)
    report.line("requests without any end", str(lost), lost == 0)
    evictions = server.metrics().get(server.evictions, 0)
    report.line("preempted or retracted", f"{evictions:.0f}", evictions > 0)
    gauges = drained(server)
    for name, value in gauges.items():
        report.line(name, f"{value:.0f} at the end" if value >= 0 else "not there", value == 0)
    grown = sizes[-1] - sizes[WARM_PARTS - 1]
    shown = ", ".join(f"{size:.0f}" for size in sizes)
    report.line(
        "memory of all processes",
        f"{shown} MiB after each part ({grown:+.0f} since part {WARM_PARTS}; at most {GROWTH_MIB})",
        grown <= GROWTH_MIB,
    )
    again = alone(server, arguments.seed)
    same = sum(again.get(prompt) == text for prompt, text in texts.items())
    report.line("alone again", f"{same} of {len(texts)} the same", same == len(texts))
    server.process.check()
    report.line("seconds", f"{time.monotonic() - start:.0f}")
    return not report.failed


def main() -> int:
    """Start the server, soak it, end it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("server", choices=sorted(SERVERS))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where the server's log goes; default: nowhere")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = SERVERS[arguments.server](arguments.log or Path(folder) / "log")
        print(f"{server.name}: {arguments.requests} requests, {arguments.clients} clients")
        report, right = Report(), False
        try:
            right = soak(server, arguments, report)
        except (httpx.HTTPError, AssertionError) as error:
            report.line("the server answers", f"no: {type(error).__name__} {error}"[-2000:], False)
        finally:
            server.process.stop()
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
