"""Credentials of the user: kept out of what is printed, published, and given to containers."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"

_USER = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY = re.compile(r"(?P<mark>[?#]).*", re.DOTALL)
# Of environment variables: HF_TOKEN and HF_HUB_TOKEN, but not TOKENIZERS_PARALLELISM.
_NAMES = re.compile(r"(?:^|_)(?:TOKEN|JWT|SECRET|PASSWORD|CREDENTIALS?|(?:API|ACCESS)_?KEY)(?:_|$)")


def hidden(address: str) -> str:
    """An address without its user, password, query and fragment: each may let somebody in."""
    if "://" not in address:
        return address
    return _QUERY.sub(rf"\g<mark>{HIDDEN}", _USER.sub(f"{HIDDEN}@", address))


def hidden_in(text: str, address: str) -> str:
    """A text, such as a library's error, without the credentials of an address."""
    text = text.replace(address, hidden(address))
    user = _USER.search(address)
    query = _QUERY.search(address)
    parts = []
    if user:
        name, _, password = user[0].removesuffix("@").partition(":")
        parts.append(password or name)  # a token may stand as the name, alone
    if query:
        for part in re.split("[?&#]", query[0]):
            name, _, value = part.partition("=")
            parts.append(value or name)
    for part in sorted({*parts, *map(unquote, parts)}, key=len, reverse=True):
        text = text.replace(part, HIDDEN) if part else text
    return text


def is_secret(variable: str) -> bool:
    """Whether the name of an environment variable says that it holds a secret."""
    return _NAMES.search(variable) is not None
