"""Passwords in addresses such as postgresql://me:password@host/db are never printed or stored."""

import re
from urllib.parse import unquote

HIDDEN = "***"

_PARAMETER = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)([^&\s]*)", re.IGNORECASE)
_IN_TEXT = re.compile(r"(:/{1,2}[^:@/\s]*:)(\S*)@")
_IN_ADDRESS = re.compile(r"(:/{1,2}[^:@/]*:)(.*)@", re.DOTALL)
"""A password may itself hold @, / or ?, where its writer forgot to escape them, so it ends at the last @."""


def hide_passwords(text: str) -> str:
    """Return a text, e.g. a message, in which passwords of addresses are replaced by ***."""
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _IN_TEXT.sub(_hidden, text))


def redacted(address: str) -> str:
    """Return an address as it may be printed and stored: passwords are ***."""
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _IN_ADDRESS.sub(_hidden, address))


def without_secrets(text: str, address: str) -> str:
    """Return a text, e.g. the message of a database, in which the passwords of an address are replaced by ***."""
    secrets = [match[2] for match in _IN_ADDRESS.finditer(address)]
    secrets += [match[2] for match in _PARAMETER.finditer(address)]
    for secret in secrets:
        for spelling in {secret, unquote(secret)} - {""}:
            text = text.replace(spelling, HIDDEN)
    return text


def _hidden(match: re.Match[str]) -> str:
    if not match[2]:
        return match[0]
    return f"{match[1]}{HIDDEN}@"
