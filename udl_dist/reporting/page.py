"""The page: templates filled with text that is escaped, and one file out. Knows no run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any


def page(values: Mapping[str, Any], template: str = "page.html.jinja", trusted: str = "svg") -> str:
    """The HTML of a report; strings in `values` may hold anything, only those called `trusted` are
    markup of ours.
    """
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _text(name)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _text("film.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    ours = {
        "style": markupsafe.Markup(_text("style.css")),
        "script": markupsafe.Markup(script),
        "script_hash": f"sha256-{digest}",
    }
    panels = [{**panel, trusted: markupsafe.Markup(panel[trusted])} for panel in values["panels"]]
    return environment.get_template(template).render({**values, **ours, "panels": panels})


def clean(text: str) -> str:
    """Text without control characters and marks that turn the direction of writing."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def _clean(value: Any) -> Any:
    return clean(value) if type(value) is str else value  # not Markup, which is ours


def _text(name: str) -> str:
    return resources.files("udl_dist.reporting").joinpath(name).read_text(encoding="utf-8")
