"""YAML whose cost is bounded by its length: no loops, no billions out of a few lines.

PyYAML's safe loader runs no code, but a merge key copies its mappings each time that it is met, so
that some lines of nested ones never end.
"""

from typing import Any

import yaml
from yaml.constructor import ConstructorError

_MERGE = "tag:yaml.org,2002:merge"

MAX_MERGED = 1024
"""Keys that merge keys may bring in, all in all."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: PyYAML keeps the last of two in silence."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._merged = 0
        self._open: set[int] = set()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(
                        None, None, f"the key {key.value} a second time", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) in self._open:
            raise ConstructorError(None, None, "a mapping that merges itself", node.start_mark)
        self._open.add(id(node))
        for key, value in node.value:
            if key.tag == _MERGE:
                # What would be copied is counted before it is.
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(source, yaml.MappingNode):
                        self.flatten_mapping(source)
                        self._count(source)
        super().flatten_mapping(node)
        self._open.discard(id(node))

    def _count(self, source: yaml.MappingNode) -> None:
        self._merged += 1 + len(source.value)
        if self._merged > MAX_MERGED:
            allowed = f"at most {MAX_MERGED} keys by merging"
            raise ConstructorError(None, None, allowed, source.start_mark)


def load_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises
    ------
    yaml.YAMLError
        It is none, a key stands twice, merge keys bring in more than they may, or a value cannot
        be made, e.g. of the date 2026-13-45.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML lets through whatever its constructors raise
        raise yaml.YAMLError(str(error)) from None
