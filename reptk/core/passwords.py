"""Passwords in addresses such as postgresql://me:password@host/db are never printed or stored."""

import re
from urllib.parse import unquote

HIDDEN = "***"

_PARAMETER = re.compile(r"([?&][^=&\s]*(?:pass|pwd|secret|token|key)[^=&\s]*=)([^&\s]*)", re.IGNORECASE)

_SETTING = re.compile(
    r"(?<![^\s'\"(])((?:ssl)?(?:passwd|password|pwd)\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s'\")]+)", re.IGNORECASE
)
"""As libpq takes them without an address: host=h password='a b' dbname=d."""

_IN_TEXT = re.compile(r"(:/{1,2}[^:\s]*:)(\S*)@")
_IN_ADDRESS = re.compile(r"(:/{1,2}[^:]*:)(.*)@", re.DOTALL)
"""User and password may themselves hold @, / or ?, where the writer forgot to escape them, so a password ends at the last @."""

_IN_TEXT_WITHOUT_SLASHES = re.compile(r"(?<![^\s'\"(])([A-Za-z][A-Za-z0-9_+.-]+:[^:/\s]*:)(?!//)(\S*)@")
_IN_ADDRESS_WITHOUT_SLASHES = re.compile(r"^([A-Za-z][A-Za-z0-9_+.-]+:[^:/]*:)(?!//)(.*)@", re.DOTALL)
"""Of an address whose writer forgot the two slashes: postgresql:me:password@host/db."""


def hide_passwords(text: str) -> str:
    """Return a text, e.g. a message, in which passwords of addresses are replaced by ***."""
    return _without_parameters(_IN_TEXT_WITHOUT_SLASHES.sub(_hidden, _IN_TEXT.sub(_hidden, text)))


def redacted(address: str) -> str:
    """Return an address as it may be printed and stored: passwords are ***."""
    return _without_parameters(_IN_ADDRESS_WITHOUT_SLASHES.sub(_hidden, _IN_ADDRESS.sub(_hidden, address)))


def without_secrets(text: str, address: str) -> str:
    """Return a text, e.g. the message of a database, in which the passwords of an address are replaced by ***."""
    patterns = (_IN_ADDRESS, _IN_ADDRESS_WITHOUT_SLASHES, _PARAMETER, _SETTING)
    secrets = [match[2].strip("'") for pattern in patterns for match in pattern.finditer(address)]
    for secret in secrets:
        for spelling in {secret, unquote(secret)} - {""}:
            text = text.replace(spelling, HIDDEN)
    return text


def _without_parameters(text: str) -> str:
    for pattern in (_PARAMETER, _SETTING):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def _hidden(match: re.Match[str]) -> str:
    if not match[2]:
        return match[0]
    return f"{match[1]}{HIDDEN}@"
