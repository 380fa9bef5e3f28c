"""HTML by construction: whatever is not made by `element` is escaped, so that no name can become markup."""

import html
import json
import math
import unicodedata
from typing import Any

VOID = frozenset({"br", "col", "img", "input", "meta"})
DIRECTING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
"""Characters that turn the direction of the text around them."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, /, *content: Any, **attributes: Any) -> Html:
    """`element("a", "x < y", href="#top", class_="quiet")`; an underscore in an attribute's name is a hyphen.

    None and False as content or attribute are left out, True is an attribute without a value.
    """
    opened = name + "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    return Html(f"<{opened}>") if name in VOID else Html(f"<{opened}>{join(*content)}</{name}>")


def join(*content: Any) -> Html:
    """Pieces and lists of pieces as one: markup as it is, anything else escaped, None and False left out."""
    return Html("".join(_piece(piece) for piece in content))


def lines(text: str) -> Html:
    """Text whose line breaks are meant."""
    return Html("\n".join(join(line) for line in text.splitlines()))


def readable(text: Any) -> str:
    """`text` with what cannot be shown replaced: lone surrogates, and control characters by their pictures."""
    if str(text).isascii() and str(text).isprintable():
        return str(text)
    whole = str(text).encode("utf-8", "replace").decode()
    return "".join(_shown(letter) for letter in whole)


def json_script(name: str, value: Any) -> Html:
    """`value` in a script element that is data: nothing in it ends the element or begins another."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Html(f'<script type="application/json" id="{html.escape(name)}">{text}</script>')


def _piece(piece: Any) -> str:
    if piece is None or piece is False:
        return ""
    if isinstance(piece, Html):
        return piece
    return join(*piece) if isinstance(piece, (list, tuple)) else html.escape(readable(piece))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(readable(value))}"'


def _shown(letter: str) -> str:
    if letter in DIRECTING:
        return "\ufffd"
    if unicodedata.category(letter) != "Cc":
        return letter
    return chr(0x2400 + ord(letter)) if ord(letter) < 32 else "\u2421" if ord(letter) == 127 else "\ufffd"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them; texts become `readable`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {readable(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return readable(value) if isinstance(value, str) else value
