"""Who may read the page: whoever has its address with the token, under the address of this machine, from the page itself."""

import hmac
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
TOKEN_BYTES = 24
SAME_ORIGIN = ("same-origin", "none")
"""What browsers send as Sec-Fetch-Site with requests of the page itself, and of the user's own navigation."""


class Access(NamedTuple):
    """The token of a server, and its port.

    The first request brings the token in the query, the others in a cookie, whose name has the port in it, since cookies do not
    tell ports apart.
    """

    token: str
    port: int

    @classmethod
    def new(cls, port: int) -> "Access":
        """Return the access to a server that starts now."""
        return cls(secrets.token_urlsafe(TOKEN_BYTES), port)

    @property
    def url(self) -> str:
        """The address that the user opens."""
        return f"http://{ADDRESS}:{self.port}/?token={self.token}"

    @property
    def cookie_name(self) -> str:
        return f"reptk-explore-{self.port}"

    @property
    def cookie(self) -> str:
        """The header that gives the token to the browser: not readable by scripts, and not sent by other sites."""
        return f"{self.cookie_name}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def has_own_host(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request names this machine.

        Another name that resolves to 127.0.0.1 (DNS rebinding) would let a page of that name read the answers.
        """
        return headers.get("Host", "").lower() in [f"{name}:{self.port}" for name in NAMES]

    def is_from_page(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request comes from the page itself, or from no page, as far as the browser says."""
        if headers.get("Sec-Fetch-Site", "none") not in SAME_ORIGIN:
            return False
        origin = headers.get("Origin")
        return origin is None or origin.lower() in [f"http://{name}:{self.port}" for name in NAMES]

    def is_token(self, text: str) -> bool:
        """Return whether this is the token, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    def has_cookie(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request has the token in its cookie."""
        try:
            morsel = SimpleCookie(headers.get("Cookie", "")).get(self.cookie_name)
        except CookieError:
            return False
        return morsel is not None and self.is_token(morsel.value)
