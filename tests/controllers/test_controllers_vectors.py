"""Outputs of the public programs (``tests/vectors/search_methods.json``)."""

import asyncio

import pytest
from controllers_support import Shuffled
from toys import Toy, ToyVocabulary

from tokenlens.controllers import Controller
from tokenlens.controllers.methods import cntp as cntp_module
from tokenlens.controllers.methods.concise_hint import place
from tokenlens.controllers.methods.conditional_entropy import answer_entropy, reductions
from tokenlens.controllers.methods.deer import certainty
from tokenlens.controllers.methods.dynasor import is_sure, trial_answer
from tokenlens.controllers.methods.latr import common_suffix, edit_distance, rouge_l
from tokenlens.controllers.methods.reverse_speculative import choose
from tokenlens.controllers.search_tree import (
    Cluster,
    Member,
    TreeSettings,
    average_linkage,
    tree_search,
)
from tokenlens.routing import Chunk, Sampling

UNSURE = ("wait", "hold", "but", "okay", "no", "hmm")
NO_THINKING = {"think_end": None}


def run(backend, spec, prompt, words, **kwargs):
    controller = Controller(backend, {**NO_THINKING, **spec}, vocabulary=words,
                            scorers=kwargs.pop("scorers", None))  # fmt: skip
    return asyncio.run(controller.run(prompt, **kwargs))


def test_cntp(vectors, monkeypatch):
    for case in vectors["cntp_decode"]:
        words = ToyVocabulary(len(case["table"]), case["eos"])
        toy = Toy(case["table"], words, tuple(case["uniforms"]))
        ends = frozenset(case["punctuation"])
        monkeypatch.setattr(cntp_module, "clause_ends", lambda *_, e=ends: e)
        policy = {"policy": "cntp", "profile": "published", "low": case["low"],
                  "high": case["high"], "most": case["max_trials"]}  # fmt: skip
        how = Sampling(temperature=case["temperature"] if case["do_sample"] else 0.0)
        room = case["max_length"] - len(case["prompt"])
        found = run(toy, {"policy": policy}, tuple(case["prompt"]), words, sampling=how,
                    max_tokens=room)  # fmt: skip
        assert [*case["prompt"], *found.ids] == case["output"]
        trials = [node for node in found.trace.nodes if node.kind == "trial" and node.value]
        assert found.trace.forks == sum(case["trials_of_branched_steps"])
        assert trials


@pytest.mark.parametrize("order", range(4))
def test_latr(vectors, order):
    for case in vectors["latr_rollout"]:
        words = ToyVocabulary(len(case["table"]), case["eos"])
        policy = {"policy": "latr", "n": case["n"], "checks": case["steps"], "edit": case["edit"],
                  "suffix": case["suffix"], "rouge_l": case["rouge_l"], "absolute": case["abs"],
                  "relative": case["rel"], "force": case["max_new_tokens"]}  # fmt: skip
        pruned, rows, branches = 0, [], []
        for root, prompt in enumerate(case["prompts"]):
            toy = Shuffled(Toy(case["table"], words), order)
            found = run(toy, {"policy": policy}, tuple(prompt), words,
                        max_tokens=case["max_new_tokens"])  # fmt: skip
            pruned += sum(node.end == "pruned" for node in found.trace.nodes)
            assert toy.running == 0
            assert toy.sessions == set()
            for line in found.lines:
                ids = [*prompt, *line.ids]
                pad = case["max_new_tokens"] - len(line.ids)
                rows.append(ids + [case["eos"]] * pad)
                parent = None if line.parent is None else line.parent
                branches.append((root, parent, line.birth, pytest.approx(line.log_prob, abs=1e-4)))
        wanted = [(b["root"], b["parent"], b["birth"], b["logp"]) for b in case["branches"]]
        # Theirs lists all roots first, and numbers parents over all of them.
        order_of = sorted(range(len(wanted)), key=lambda at: wanted[at][0])
        number = {}
        for root in range(len(case["prompts"])):
            mine = [at for at in order_of if wanted[at][0] == root]
            number |= {at: place for place, at in enumerate(mine)}
        assert [
            (root, None if parent is None else number[parent], birth, logp)
            for root, parent, birth, logp in (wanted[at] for at in order_of)
        ] == branches
        padded = [
            [i if i != case["pad"] else case["eos"] for i in row] for row in case["sequences"]
        ]
        assert [row + [case["eos"]] * (len(rows[0]) - len(row)) for row in padded] == rows
        assert pruned == case["n_pruned"]


def test_latr_similarity(vectors):
    for case in vectors["latr_similarity"]:
        a, b = case["a"], case["b"]
        assert edit_distance(a, b) / len(a) == pytest.approx(case["edit"], abs=1e-6)
        assert common_suffix(a, b) / len(a) == pytest.approx(case["suffix"], abs=1e-6)
        assert rouge_l(a, b) == pytest.approx(case["rouge_l"], abs=1e-6)


def test_deer_confidence(vectors):
    for case in vectors["deer_confidence"]:
        for kind, name in (("mean", "avg1"), ("geometric", "avg2"), ("min", "min")):
            assert certainty(case["probs"], kind) == pytest.approx(case[name], abs=1e-6)
    assert certainty([0.7]) == 0.7
    assert certainty([0.7], "min", "published") == 1.0
    assert not certainty([0.7], "mean", "published") > 0
    assert certainty([]) != certainty([])
    assert certainty([0.5, 0.0], "geometric") == 0


def test_dynasor_answer(vectors):
    for case in vectors["dynasor_answer"]:
        assert trial_answer(case["text"]) == case["answer"]
        assert is_sure(case["text"], UNSURE, "substring") == case["certain"]
    assert is_sure("a note}", UNSURE)
    assert not is_sure("a note}", UNSURE, "substring")


def test_conditional_entropy(vectors):
    for case in vectors["conditional_entropy"]:
        found = [answer_entropy(rows) for rows in case["answer_logits_after_step"]]
        assert found == pytest.approx(case["conditional_entropy"], abs=1e-6)
        assert reductions(found) == pytest.approx(case["reduction"], abs=1e-6)


def test_concise_hint_position(vectors):
    for case in vectors["concisehint_position"]:
        assert place(case["text"], case["length"]) == case["pos"]


class Reader:
    """Continues a seed text word by word, each with a blank behind it, and reads over hints."""

    gives_full_entropy = trips = False

    def __init__(self, seed, prompt, hint):
        self.words, self.prompt, self.hint, self.calls = seed.split(), prompt, hint, []

    async def generate(self, ask):
        done = ask.context[len(self.prompt) :].replace(self.hint, "").split()
        new = self.words[len(done) :][: ask.max_tokens]
        finish = "length" if len(done) + len(new) < len(self.words) else "eos"
        self.calls.append({"max_tokens": ask.max_tokens, "n": len(new),
                           "finish": "stop" if finish == "eos" else finish})  # fmt: skip
        for word in new[:-1]:
            yield Chunk((), word + " ", 1)
        yield Chunk((), new[-1] + " ", 1, None, finish)

    async def release(self, session):
        pass


def test_concise_hint_loop(vectors):
    prompt = "<|User|>Q\nPut your final answer within \\boxed{}.\n<|Assistant|>"
    hint = "-<|im_start|>user\nmake answer concise!<|im_end|>-"
    for case in vectors["concisehint_loop"]:
        backend = Reader(case["seed_text"], prompt, hint)
        spec = {"policy": {"policy": "concise_hint", "profile": "published",
                           "most": case["limit"]}, "thinking_tokens": 100_000}  # fmt: skip
        found = run(backend, spec, prompt, None, scorers={"count_tokens": lambda t: len(t.split())})
        assert backend.calls == case["calls"]
        assert found.text == case["result"]


def test_reverse_speculative_step(vectors):
    for case in vectors["reverse_speculative_step"]:
        proposer, approver = (dict(enumerate(case[name])) for name in ("proposer", "approver"))
        found = choose(proposer, approver, case["threshold"], case["uniforms"], case["shared"])
        assert found == (case["token"], case["fallback"])


def test_fetch_clusters(vectors):
    for case in vectors["fetch_clusters"]:
        groups = {}
        for row, label in enumerate(average_linkage(case["embeddings"], case["d"])):
            groups.setdefault(label, []).append(row)
        assert sorted(groups.values()) == sorted(case["groups"])


class Stubs:
    """The vectors' deterministic world (``_meta.reading``)."""

    def __init__(self, steps):
        self.steps, self.calls, self.count = steps, {}, 0

    async def write(self, parents, *, full):
        made = []
        for parent in parents:
            key = "|".join(parent.path)
            k = self.calls.get((key, full), 0)
            self.calls[key, full] = k + 1
            self.count += 1
            options = self.steps["full" if full else "step"]
            step = options[(3 * len(parent.path) + k + sum(map(ord, key))) % len(options)]
            made.append(Member((*parent.path, step), step.startswith("E")))
        return made

    async def value(self, member):
        text = "|".join(member.path)
        return round(sum((i + 1) * ord(c) for i, c in enumerate(text)) % 97 / 97, 6)

    async def groups(self, members):
        order = {}
        return [order.setdefault(one.path[-1][:2], len(order)) for one in members]


def shown(node):
    return {
        "contents": [one.path[-1] if one.path else None for one in node.members],
        "value": None if node.parent is None else node.value,
        "p": round(node.prior, 6), "n": node.visits, "q": round(node.mean, 6),
        "leaf": node.is_leaf, "children": [shown(one) for one in node.children],
    }  # fmt: skip


def test_fetch_mcts(vectors):
    for case in vectors["fetch_mcts"]:
        world = Stubs(case["steps"])
        settings = TreeSettings(**case["config"], first_value=True)
        root = asyncio.run(tree_search(world, Cluster([Member()]), settings))
        assert shown(root) == case["root"]
        assert world.count == case["generations"]
