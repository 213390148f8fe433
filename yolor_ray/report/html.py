"""Make self-contained HTML pages: style and pictures stand inside the page, and nothing is loaded from the network.

All values are escaped, since names of files and classes come from data.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PACKAGE = Path(__file__).parents[1]


def render_page(template: str, content: Mapping[str, Any]) -> bytes:
    """Render a page as UTF-8; `template` is a path below the package, and extends `report/page.html`."""
    environment = Environment(
        loader=FileSystemLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", " ")
    return environment.get_template(template).render(content).encode()


def data_uri(picture: bytes) -> str:
    """Return a JPEG as a URI that holds the picture itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
