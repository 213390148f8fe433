"""Read YAML with all scalars as text, so that a name such as 02146, yes, null or 1e3 stays as written.

Tags and keys that occur twice are refused.
"""

import yaml
from yaml import Node

PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str"))


def read_mapping(text: str) -> dict[str, Node]:
    """Return the nodes at the top level of a YAML document by key.

    Raises:
        ValueError: the text is no YAML, or no mapping with each key once.
    """
    try:
        # BaseLoader resolves no scalar to a number, a truth value or a date, and composing constructs no object.
        document = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"no valid YAML ({' '.join(str(error).split()) or 'nested too deep'})") from error
    if not isinstance(document, yaml.MappingNode):
        raise ValueError("no mapping at the top level")
    return to_mapping(document, "the top level")


def to_mapping(node: Node, name: str) -> dict[str, Node]:
    """Return the nodes of a mapping by key; `name` is for the message."""
    nodes: dict[str, Node] = {}
    for key_node, value in _mapping_items(node, name):
        key = to_text(key_node, f"a key of {name}")
        if key in nodes:
            raise ValueError(f"key {key!r} a second time in {name}, in line {key_node.start_mark.line + 1}")
        nodes[key] = value
    return nodes


def _mapping_items(node: Node, name: str) -> list[tuple[Node, Node]]:
    if not isinstance(node, yaml.MappingNode) or node.tag not in PLAIN_TAGS:
        raise ValueError(f"{_kind(node)} as {name}, expected a mapping")
    return list(node.value)


def to_list(node: Node, name: str) -> list[Node]:
    """Return the nodes of a sequence; `name` is for the message."""
    if not isinstance(node, yaml.SequenceNode) or node.tag not in PLAIN_TAGS:
        raise ValueError(f"{_kind(node)} as {name}, expected a list")
    return list(node.value)


def to_text(node: Node, name: str) -> str:
    """Return a scalar as written; `name` is for the message."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in PLAIN_TAGS:
        raise ValueError(f"{_kind(node)} as {name}, expected a plain value")
    return str(node.value)


def to_number(node: Node, name: str) -> int:
    """Return a whole number from 0; `name` is for the message."""
    text = to_text(node, name)
    if not text.isdecimal():
        raise ValueError(f"{text!r} as {name}, expected a whole number from 0")
    return int(text)


def _kind(node: Node) -> str:
    if node.tag not in PLAIN_TAGS:
        return f"tag {node.tag}"
    return {"mapping": "a mapping", "sequence": "a list", "scalar": f"{node.value!r}"}[node.id]
