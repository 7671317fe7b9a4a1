"""Addresses of servers: what is one, and when two are the same. For the router and evaluations.

No error repeats a key that an address holds.
"""

from typing import NamedTuple
from urllib.parse import urlsplit

from tokenlens.errors import SpecError

PORTS = {"http": 80, "https": 443}


class Address(NamedTuple):
    """A server's address, in one spelling: equal where the servers are."""

    scheme: str
    host: str
    port: int
    # without a final slash and without /v1
    path: str


def read_address(field: str, url: str) -> Address:
    """Read an address.

    Parameters
    ----------
    field
        The setting, for the error.

    Raises
    ------
    SpecError
        It is none, or it holds a key, a query, or characters that no address has.
    """
    allowed = "http://HOST:PORT or https://HOST, an address such as http://127.0.0.1:8001/v1"
    # Wherever it stands: a key may hold a slash or a question mark.
    if "@" in url:
        allowed = f"{allowed}, with the key in an environment variable (TOKENLENS_API_KEY)"
        raise SpecError.of(field, f"an address with a key at {_shown(url)}", allowed)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SpecError.of(field, _shown(url), allowed) from None
    # urlsplit leaves line breaks out without a word.
    is_clean = url.isprintable() and not any(map(str.isspace, url))
    if not is_clean or parts.scheme not in PORTS or not parts.hostname:
        raise SpecError.of(field, _shown(url), allowed)
    if parts.query or parts.fragment:
        raise SpecError.of(field, _shown(url), f"{allowed}, without a query")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(
        parts.scheme, parts.hostname, PORTS[parts.scheme] if port is None else port, path
    )


def _shown(url: str) -> str:
    """What of an address an error may repeat: no user, no query."""
    return url.rpartition("@")[2].partition("?")[0].partition("#")[0]
