"""``tokenlens route`` with a controller, in front of one server of text, over real sockets."""

import json

import httpx
import pytest
from controllers_support import END
from routing_fakes import Served, fake_server
from routing_support import prompts, tokenizer, vocabulary

from tokenlens.cli.route import read_policy
from tokenlens.controllers import ControllerSpec, parse_controller
from tokenlens.controllers.serve import build
from tokenlens.errors import SpecError
from tokenlens.routing import RoutingSpec
from tokenlens.routing.http import HTTPSettings
from tokenlens.routing.serve import Target
from tokenlens.routing.service import ServerSettings

PROBE = {"probe_text": "\n</think>\n\n", "answers": "text"}
SPEC = {"policy": {"policy": "self_consistency", "n": 2}, "limits": {"forks": 4}}


@pytest.fixture(scope="module")
def server():
    """A controller in front of a tiny reasoner that takes and gives text."""
    model = Served(fake_server("small"))
    target = Target(model.url, tokenizer=tokenizer().name_or_path)
    app, controller, found = build(
        {"large": target}, parse_controller(SPEC), HTTPSettings(), ServerSettings()
    )
    assert found["large"].api == "text"
    assert controller.handover == "text"
    front = Served(app)
    yield front.url
    front.close()
    model.close()


def ask(server, **fields):
    body = {"prompt": vocabulary().decode(prompts(4)[2]), "max_tokens": 320, "temperature": 0}
    return httpx.post(
        server + "/v1/completions", json={**body, **fields}, timeout=300, trust_env=False
    )


def test_one_server_is_enough(server):
    answer = ask(server, route=True).json()
    usage, route = answer["usage"], answer["route"]
    assert usage["models"]["large"]["discarded_tokens"] > 0
    assert usage["injected_tokens"] == 0
    assert route["forks"] == 2
    assert not route["exact"]
    assert [node["kind"] for node in route["nodes"]].count("line") == 3
    assert not answer["choices"][0]["text"].endswith(END)


def test_a_request_chooses_its_method(server):
    policy = {"policy": "dynasor", "chunk": 24, "window": 2, **PROBE}
    answer = ask(server, controller=policy, route=True).json()
    assert answer["route"]["spec"]["policy"]["policy"] == "dynasor"
    assert answer["route"]["probes"] > 0


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"policy": "self_consistency", "n": 5}, ["5 forks", "at most 4"]),
        ({"policy": "deer", "threshold": 1.5}, ["threshold"]),
        ({"policy": "latr", "n": 4}, ["token ids"]),
        ("nobody", ["nobody"]),
        ({"policy": "self_consistency", "n": 0}, ["n"]),
        (7, ["controller"]),
        ([], ["controller"]),
    ],
)
def test_beyond_the_bounds_is_a_400(server, policy, words):
    answer = ask(server, controller=policy)
    assert answer.status_code == 400
    for word in words:
        assert word in answer.json()["error"]["message"]


def test_streams_end_with_the_tree(server):
    body = {"prompt": vocabulary().decode(prompts(4)[2]), "max_tokens": 320, "temperature": 0,
            "stream": True, "route": True}  # fmt: skip
    text, route = "", None
    with httpx.stream("POST", server + "/v1/completions", json=body, timeout=300) as response:
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            route = event.get("route", route)
            text += "".join(choice["text"] for choice in event["choices"])
    assert text == ask(server).json()["choices"][0]["text"]
    assert route["forks"] == 2


def test_policies_of_the_command_line():
    assert isinstance(read_policy("glimprouter"), RoutingSpec)
    assert isinstance(read_policy("deer"), ControllerSpec)
    assert read_policy("deer", "0.5").policy.threshold == 0.5
    assert read_policy(json.dumps(SPEC)) == parse_controller(SPEC)
    with pytest.raises(SpecError, match="threshold"):
        read_policy("icn", "0.5")
    with pytest.raises(SpecError):
        read_policy("deer", "2")
