"""A steered request's tree as a page: probes, hints, forks and votes, what was kept and what not.

Plain HTML without a script; every text is escaped.
"""

from html import escape

from tokenlens.controllers.tree import Node, SteerTrace

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; max-width: 70em }
details { margin-left: 1.2em; border-left: 2px solid #ccc; padding-left: .6em }
.probe > summary, .verdict > summary { color: #06c }
.hint > summary, .closing > summary { color: #a50 }
.fork > summary, .trial > summary { color: #082 }
.gone > summary { opacity: .55 } code { white-space: pre-wrap }
"""


def page(traces: list[SteerTrace]) -> str:
    """The page of some requests."""
    body = "".join(_request(at, trace) for at, trace in enumerate(traces))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>steered requests</title>'
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _request(at: int, trace: SteerTrace) -> str:
    facts = [f"stopped: {trace.stopped}", f"finish: {trace.finish_reason}"]
    for role, usage in trace.usage.items():
        facts.append(f"{role}: {usage.tokens} kept, {usage.discarded_tokens} thrown away")
    facts.append(f"{trace.probes} probes, {trace.forks} forks, {trace.injected_tokens} injected")
    if trace.canonical is False:
        facts.append("the text's own encoding is other ids")
    votes = "".join(
        f"<li><code>{escape(answer)}</code>: {weight:.4g}</li>"
        for answer, weight in trace.vote.items()
    )
    by_parent: dict[int | None, list[Node]] = {}
    for node in trace.nodes:
        by_parent.setdefault(node.parent, []).append(node)
    tree = "".join(_node(node, by_parent) for node in by_parent.get(None, ()))
    dropped = f"<p>{trace.dropped_nodes} nodes more</p>" if trace.dropped_nodes else ""
    listed = f"<ul>{votes}</ul>" if votes else ""
    return f"<h2>request {at}</h2><p>{escape('; '.join(facts))}</p>{listed}{tree}{dropped}"


def _node(root: Node, by_parent: dict[int | None, list[Node]]) -> str:
    """A node and all below it; no recursion, as a tree may be deep."""
    parts: list[str] = []
    waiting: list[Node | None] = [root]
    while waiting:
        node = waiting.pop()
        if node is None:
            parts.append("</details>")
            continue
        gone = " gone" if node.tokens and not node.kept else ""
        facts = [node.kind, f"@{node.at}", f"{node.kept} of {node.tokens} tokens kept", node.end]
        facts += [f"{node.value:.4g}"] if node.value is not None else []
        facts += [one for one in (node.note, node.error) if one]
        parts.append(
            f'<details open class="{node.kind}{gone}"><summary>'
            f"{escape(' · '.join(one for one in facts if one))}</summary>"
        )
        if node.text:
            parts.append(f"<code>{escape(node.text)}</code>")
        waiting.append(None)
        waiting += reversed(by_parent.get(node.id, ()))
    return "".join(parts)
