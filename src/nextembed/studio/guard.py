"""Access control in front of the app: hosts, origins, token, size of requests. Plain ASGI, so that it sees every
request."""

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = dict[str, str]

COOKIE = "nextembed_studio"
LOCAL_NAMES = ("localhost", "localhost.localdomain")
# Parts of gradio that are not needed and could fetch, reveal or edit something.
CLOSED = ("/gradio_api/proxy=", "/proxy=", "/monitoring", "/gradio_api/vibe", "/gradio_api/undo-vibe",
          "/gradio_api/deep_link", "/gradio_api/mcp", "/docs", "/redoc", "/openapi.json",
          "/gradio_api/runs")  # fmt: skip
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self'; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
ADDED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Rules:
    """hosts: names that the browser may know this machine by, besides addresses. token: None asks for none.
    any_address: whether addresses other than loopback ones are allowed. max_bytes: of a request."""

    hosts: frozenset[str]
    token: str | None
    any_address: bool
    max_bytes: int


def rules_of(host: str, token: str | None, max_bytes: int) -> Rules:
    """For a server that listens on an address. token: to be asked for; only a loopback address needs none."""
    if is_loopback(host):
        return Rules(frozenset(LOCAL_NAMES), token, False, max_bytes)
    own = socket.gethostname().lower()
    return Rules(frozenset({*LOCAL_NAMES, host.lower(), own, f"{own}.local"}), token, True, max_bytes)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI app in front of another one. It refuses a request with one line if its Host is not a name of this machine
    (another site may have pointed its name here), if its Origin is another site, if it is larger than `max_bytes`, and
    without the token. The token comes once, in the printed link, and is a cookie afterwards.
    """

    def __init__(self, app: App, rules: Rules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        refused = self.refused(str(scope["path"]), str(scope.get("method", "GET")), headers)
        if refused is not None:
            await answer(scope, send, *refused)
            return
        if self.rules.token is not None:
            given = dict(parse_qsl(raw_query(scope), keep_blank_values=True))
            if "token" in given and same(given["token"], self.rules.token):
                await self._welcome(scope, send, given)
                return
            if not same(cookie_of(headers), cookie_for(self.rules.token)):
                await answer(
                    scope,
                    send,
                    401,
                    "Open the studio with its full link, which is shown in the terminal that started it.",
                )
                return
        await self.app(scope, self._counted(receive), added(send))

    def refused(self, path: str, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and reason where a request is not let in."""
        host = headers.get("host", "")
        if not self.own_host(host):
            return 403, f"This studio is not known as {host[:100]!a}."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "The request came from another site; only the studio's own pages are allowed."
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
            method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        ):
            return 403, "The request came from another site; only the studio's own pages are allowed."
        if path.startswith(CLOSED):
            return 404, "There is no such page."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.rules.max_bytes:
            return 413, f"That is more than {self.rules.max_bytes // 10**6} MB."
        return None

    def own_host(self, host: str) -> bool:
        """Whether a Host header names this machine: an address, or one of the names that it has."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self.rules.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.rules.any_address or address.is_loopback

    def _counted(self, receive: Receive) -> Receive:
        """A request without a length is cut off at the limit."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            body = message.get("body", b"")
            seen += len(body) if isinstance(body, bytes) else 0
            return {"type": "http.disconnect"} if seen > self.rules.max_bytes else message

        return counted

    async def _welcome(self, scope: Scope, send: Send, given: Headers) -> None:
        """The same page without the token in its address, and the cookie."""
        assert self.rules.token is not None
        rest = urlencode({name: value for name, value in given.items() if name != "token"})
        path = "/" + str(scope["path"]).lstrip("/")  # "//elsewhere" would be another site
        cookie = f"{COOKIE}={cookie_for(self.rules.token)}; Path=/; HttpOnly; SameSite=Lax"
        more = {"location": path + (f"?{rest}" if rest else ""), "set-cookie": cookie, "cache-control": "no-store"}
        await answer(scope, send, 303, "", more)


def headers_of(scope: Scope) -> Headers:
    """By name in lower case; of a name that comes twice, all, so that no second value is overlooked."""
    found: Headers = {}
    pairs = scope["headers"]
    assert isinstance(pairs, Iterable)
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def raw_query(scope: Scope) -> str:
    """What stands behind the "?"."""
    query = scope.get("query_string", b"")
    return query.decode("latin-1") if isinstance(query, bytes) else ""


def cookie_for(token: str) -> str:
    """The value of the cookie: not the token itself, so that it does not reveal the token."""
    return sha256(f"nextembed studio {token}".encode()).hexdigest()


def cookie_of(headers: Headers) -> str:
    """The studio's cookie; "" where there is none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def same(one: str, other: str) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


async def answer(scope: Scope, send: Send, status: int, text: str, more: Headers | None = None) -> None:
    """A plain answer of one line; a websocket is closed."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff", **(more or {})}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text.encode()})


def added(send: Send) -> Send:
    """Headers that are added to every answer."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = message.get("headers") or []
            assert isinstance(given, Iterable)
            pairs = list(given)
            there = {name.lower() for name, _ in pairs}
            pairs += [(n.encode(), v.encode()) for n, v in ADDED.items() if n.encode() not in there]
            message = {**message, "headers": pairs}
        await send(message)

    return with_headers
