"""Parse XML into nodes with line numbers; entities are refused, which excludes entity bombs and external files."""

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

MAX_DEPTH = 100


class XmlError(ValueError):
    """The text is not acceptable XML; `line` is the line of the error."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Node:
    """One element."""

    tag: str
    """Name of the element, in lower case."""
    line: int
    """Line of its start tag, from 1."""
    children: list["Node"] = field(default_factory=list)
    """Elements directly inside."""
    pieces: list[str] = field(default_factory=list)
    """Runs of text directly inside."""

    @property
    def text(self) -> str:
        """Text directly inside, without white space around it."""
        return "".join(self.pieces).strip()

    def find(self, tag: str) -> "Node | None":
        """Return the first child with this tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def find_nested(self, tag: str) -> list["Node"]:
        """Return the elements with this tag at any depth, but not those inside of one another."""
        return [node for child in self.children for node in ([child] if child.tag == tag else child.find_nested(tag))]

    def leaves(self) -> list["Node"]:
        """Return the elements without children at any depth; the element itself if it has none."""
        return [leaf for child in self.children for leaf in child.leaves()] if self.children else [self]


def parse_xml(data: bytes) -> Node:
    """Return the root element.

    Raises:
        XmlError: malformed text, an entity declaration, a reference to an external file, or more than 100 nested elements.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    document = Node("", 0)
    open_nodes = [document]

    def start(tag: str, _: dict[str, str]) -> None:
        if len(open_nodes) > MAX_DEPTH:
            raise XmlError(f"found elements over {MAX_DEPTH} deep", parser.CurrentLineNumber)
        node = Node(tag.lower(), parser.CurrentLineNumber)
        open_nodes[-1].children.append(node)
        open_nodes.append(node)

    def refuse(*_: Any) -> int:
        raise XmlError("found an entity declaration, expected plain XML", parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_nodes.pop()
    parser.CharacterDataHandler = lambda text: open_nodes[-1].pieces.append(text)
    parser.EntityDeclHandler = parser.ExternalEntityRefHandler = parser.UnparsedEntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise XmlError(f"found malformed XML: {error}", error.lineno) from error
    except (ValueError, LookupError) as error:
        if isinstance(error, XmlError):
            raise
        raise XmlError(f"found XML in an encoding that cannot be read: {error}", 1) from error
    return document.children[0]
