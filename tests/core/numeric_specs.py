"""Random specs out of the JSON Schema, weighted towards the ends of every number's range.

What is tried is derived from the models: a new field is tried without a word here.
"""

import math

from core_solo import EOS, MARKERS, START

from tokenlens import DecodingSpec
from tokenlens.spec import METHOD_CONFIGS
from tokenlens.spec.registry import LATENT_METHODS, NEEDS_LATENT

VOCAB = 80
LETTERS = "_ .<>abcdefgh\n".ljust(VOCAB, "?")
TEXTS = ("a", "b", "c")
"""Tokens of the toy tokenizer, fine where a text or a word is asked for."""

SCHEMA = DecodingSpec.model_json_schema()
FIXED = {"phase": MARKERS.model_dump(mode="json")}
PROMPT = [START]
ENDS = [EOS]


def resolve(node):
    """A node of the schema, with references followed."""
    while "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def numbers(node, path=(), seen=()):
    """Every number below a node, with the path to it."""
    name = node.get("$ref")
    if name in seen:
        return
    node, seen = resolve(node), (*seen, name) if name else seen
    if node.get("type") in ("integer", "number"):
        yield path, node
    for key, below in node.get("properties", {}).items():
        yield from numbers(below, (*path, key), seen)
    for key in ("anyOf", "oneOf", "prefixItems"):
        for index, below in enumerate(node.get(key, ())):
            yield from numbers(below, (*path, f"{key}[{index}]"), seen)
    if isinstance(node.get("items"), dict):
        yield from numbers(node["items"], (*path, "items"), seen)


def ends(node):
    """The smallest and the largest value of a number's node."""
    low, high = node.get("minimum"), node.get("maximum")
    whole = node["type"] == "integer"
    if low is None:
        low = node["exclusiveMinimum"]
        low = low + 1 if whole else math.nextafter(float(low), math.inf)
    if high is None:
        high = node["exclusiveMaximum"]
        high = high - 1 if whole else math.nextafter(float(high), -math.inf)
    return (int(low), int(high)) if whole else (float(low), float(high))


def number(node, random):
    """A number of its range: often an end, or near one."""
    low, high = ends(node)
    kind = random.random()
    if kind < 0.35:
        return low
    if kind < 0.7:
        return high
    if node["type"] == "integer":
        return min(high, low + random.randrange(1 + min(high - low, 10 ** random.randrange(1, 9))))
    if kind < 0.8 and low <= 0 <= high:
        return random.choice([0.0, 1e-300, 1e-45, 1e-38, min(high, 1e-6)])
    if kind < 0.9 and low >= 0:
        return min(high, max(low, 10 ** random.uniform(-8, math.log10(max(high, 1e-8)))))
    return min(high, max(low, random.uniform(low, high)))


def value(node, random):
    """A random value of any node."""
    node = resolve(node)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return random.choice(node["enum"])
    for key in ("anyOf", "oneOf"):
        if key in node:
            return value(random.choice(node[key]), random)
    kind = node.get("type")
    if kind in ("integer", "number"):
        found = number(node, random)
        # Ids of this vocabulary, where ids are asked for.
        return found % VOCAB if node.get("exclusiveMaximum") == 1 << 24 else found
    if kind == "boolean":
        return random.random() < 0.5
    if kind == "null":
        return None
    if kind == "string":
        return random.choice(TEXTS)
    if kind == "array":
        return array(node, random)
    return fields(node, random)


def array(node, random):
    """A random list, of few things."""
    if "prefixItems" in node:
        return sorted(value(one, random) for one in node["prefixItems"])
    most = min(node.get("maxItems", 3), 3)
    return [
        value(node["items"], random) for _ in range(random.randint(node.get("minItems", 0), most))
    ]


def fields(node, random):
    """A random object: what it needs, and about half of the rest."""
    needed = node.get("required", ())
    return {
        name: value(below, random)
        for name, below in node["properties"].items()
        if name in needed or random.random() < 0.6
    }


def method(name, random):
    """A random config of a method, perhaps an inconsistent one."""
    config = METHOD_CONFIGS[name]
    found = fields(resolve({"$ref": f"#/$defs/{config.__name__}"}), random)
    return {**found, "method": name}


def spec(random, names=None):
    """A random spec as a mapping, perhaps an inconsistent one."""
    if names is None:
        names = random.sample(sorted(METHOD_CONFIGS), random.choice([1, 1, 2, 3, 4]))
        if any(name in NEEDS_LATENT for name in names) and not LATENT_METHODS.intersection(names):
            names.append(random.choice(sorted(LATENT_METHODS)))
    level = random.choice(["summary", "full"])
    methods = [method(name, random) for name in names]
    return {"methods": methods, "seed": number({"type": "integer", "minimum": 0,
            "exclusiveMaximum": 1 << 63}, random), "trace": {"level": level}, **FIXED}  # fmt: skip
