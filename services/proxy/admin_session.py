"""Whose administrator's session a request of the HTTP door brings, and whether a page of our own sent it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web
from multidict import CIMultiDictProxy

from gateway.errors import AmbiguousCredentials, CrossSiteRequest, Unauthenticated, UnsupportedMediaType
from gateway.sessions import is_session_token

COOKIE = "__Host-gateway_session"
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_LOG_IN = "Log in with POST /auth/login and send the session as `Authorization: Bearer <session token>`."


@dataclass(frozen=True, slots=True)
class Credential:
    """The secret of a session; `by_cookie`: a browser sent it by itself."""

    secret: str
    by_cookie: bool


def credential(request: web.BaseRequest) -> Credential:
    """The session that a request brings: a Bearer token, else the cookie. The query string is never looked at.

    Raises Unauthenticated for none, and for what is no session's secret, such as a client token; CrossSiteRequest for a cookie
    that a foreign page may have sent; UnsupportedMediaType for one with a body that is not declared as JSON.
    """
    if "Authorization" in request.headers:
        return Credential(_session_token(_bearer(request.headers)), by_cookie=False)
    found = Credential(_session_token(request.cookies.get(COOKIE, "")), by_cookie=True)
    if request.method not in _SAFE_METHODS:
        require_own_page(request)
        if request.body_exists and request.content_type != "application/json":
            raise UnsupportedMediaType("A session in a cookie takes Content-Type: application/json.")
    return found


def require_own_page(request: web.BaseRequest) -> None:
    """Raises CrossSiteRequest unless the browser says that a page of our own origin sent the request."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None:
        # Nothing but the origin to go by, so it has to be ours to the letter.
        proved = origin is not None and origin == f"{request.scheme}://{request.host}"
    else:
        # The scheme may differ where someone else ends TLS before us; the browser has compared it already.
        proved = site == "same-origin" and (origin is None or _host_of(origin) == request.host.lower())
    if not proved:
        raise CrossSiteRequest("This session came in a cookie, without proof that the request is from a page of this gateway.")


def refuse_foreign_page(request: web.BaseRequest) -> None:
    """For logins, which have no cookie: raises CrossSiteRequest when a browser says that a foreign page sent the request."""
    if "Sec-Fetch-Site" in request.headers or "Origin" in request.headers:
        require_own_page(request)


def set_cookie(headers: Mapping[str, str], secret: str) -> dict[str, str]:
    """These headers with the cookie that carries a session. It ends with the browser; the server ends it earlier."""
    return {**headers, "Set-Cookie": f"{COOKIE}={secret}; Secure; HttpOnly; SameSite=Strict; Path=/"}


def clear_cookie(headers: Mapping[str, str]) -> dict[str, str]:
    """These headers with what makes a browser forget the cookie."""
    return {**headers, "Set-Cookie": f"{COOKIE}=; Max-Age=0; Secure; HttpOnly; SameSite=Strict; Path=/"}


def _bearer(headers: CIMultiDictProxy[str]) -> str:
    values = {value.strip() for value in headers.getall("Authorization") if value.strip()}
    if len(values) > 1:
        raise AmbiguousCredentials("Two Authorization headers carry two different credentials. Send one.")
    scheme, _, secret = values.pop().partition(" ") if values else ("", "", "")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _session_token(text: str) -> str:
    if not text:
        raise Unauthenticated(f"This needs an administrator's session. {_LOG_IN}")
    if not is_session_token(text):
        raise Unauthenticated(f"This is no administrator's session; a client token opens nothing here. {_LOG_IN}")
    return text


def _host_of(origin: str) -> str:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.netloc.lower() if parts.scheme in {"http", "https"} else ""
