"""Credentials and questions that open nothing, as a table: what is asked, and the exact answer.

Secrets are filled in when a case is asked, so that the same table does for a gateway in this process and for a running
server. Nothing here is drawn by chance: a case has the same name and the same question in every run, its secrets apart.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from tests.serving.disguises import ELSEWHERE, IN_URL, MANGLED, NEAR, PATHS, ROADS, SCHEMES, TICKETS, TRICKS, VALUES

PAGE: Final = "https://acme.example"
HOST: Final = "localhost:8998"
TENANTS: Final = f"""
tenants:
  acme: {{concurrent_sessions: 50, sessions_per_minute: 100000, origins: ["{PAGE}"]}}
  beta: {{concurrent_sessions: 50, sessions_per_minute: 100000}}
  narrow: {{parameters: [text_topk]}}
  elsewhere: {{models: [another]}}
  closed: {{concurrent_sessions: 0}}
  spent: {{audio_s_per_day: 0}}
"""
LIVING: Final = ("acme", "beta", "narrow", "elsewhere", "closed", "spent")
DEAD: Final = ("revoked", "expired", "orphan")
"""Keys of acme that were revoked or have expired, and one whose tenant is no more."""

Headers = tuple[tuple[bytes, bytes], ...]


class Wallet(Protocol):
    """What a stranger may have got hold of."""

    def key(self, whose: str) -> str:
        """A key of `LIVING` or `DEAD`."""
        ...

    def ticket(self, whose: str, origin: str | None) -> str:
        """A ticket that nobody has used."""
        ...

    def spend(self, ticket: str, origin: str | None) -> None:
        """Use a ticket up."""
        ...

    def wait_out(self) -> None:
        """Let every ticket expire."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One request.

    Attributes:
        target: path and query, as they stand in the request line.
        socket: whether it asks for a WebSocket.
    """

    method: str
    target: str
    headers: Headers
    socket: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A question and the only answer to it.

    Attributes:
        timely: it needs a clock that the test moves.
        family: of its like; a sample takes some of each.
    """

    name: str
    family: str
    ask: Callable[[Wallet], Question]
    status: int
    reason: str
    timely: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Door:
    """Where a credential is presented."""

    name: str
    method: str
    path: str
    socket: bool = False

    def question(self, *headers: tuple[str | bytes, str | bytes], query: str = "") -> Question:
        raw = tuple((_bytes(name), _bytes(value)) for name, value in headers)
        target = self.path + (f"?{query}" if query else "")
        return Question(self.method, target, ((b"host", HOST.encode()), *raw), self.socket)


CHAT: Final = Door("chat", "GET", "/api/chat", socket=True)
TICKET: Final = Door("ticket", "POST", "/api/ticket")
USAGE: Final = Door("usage", "GET", "/api/usage")
DOORS: Final = (CHAT, TICKET, USAGE)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def bearer(key: str) -> tuple[str, str]:
    return "authorization", f"Bearer {key}"


def own(key: str) -> tuple[str, str]:
    return "kyutai-api-key", key


def cases() -> list[Case]:
    """All of them, in a fixed order."""
    families = (
        _mangled_keys,
        _dead_keys,
        _schemes,
        _keys_elsewhere,
        _keys_in_urls,
        _origins,
        _tickets,
        _timely_tickets,
        _twice,
        _names,
        _models,
        _resumptions,
        _roads,
        _tricks,
        _tenants,
    )
    return list(itertools.chain.from_iterable(family() for family in families))


def sample() -> list[Case]:
    """The fixed part that is asked of a running server: every eighth of a family, from its first."""
    by_family = itertools.groupby((case for case in cases() if not case.timely), key=lambda case: case.family)
    return [case for _, members in by_family for case in list(members)[::8]]


def _mangled_keys() -> Iterator[Case]:
    for door, (how, mangle) in itertools.product(DOORS, MANGLED.items()):
        for name, header in (("bearer", bearer), ("own", own)):

            def ask(
                wallet: Wallet,
                door: Door = door,
                mangle: Callable[[str], str] = mangle,
                header: Callable[[str], tuple[str, str]] = header,
            ) -> Question:
                return door.question(header(mangle(wallet.key("acme"))))

            yield Case(f"key: {how}, {name}, {door.name}", "key", ask, 401, "not_allowed")


def _dead_keys() -> Iterator[Case]:
    for door, whose in itertools.product(DOORS, DEAD):
        yield Case(
            f"{whose} key, {door.name}",
            "dead",
            lambda wallet, door=door, whose=whose: door.question(bearer(wallet.key(whose))),  # type: ignore[misc]
            401,
            "not_allowed",
        )
    for door, (one, other) in itertools.product(DOORS, itertools.permutations(("acme", "beta", "revoked"), 2)):

        def crossed(wallet: Wallet, door: Door = door, one: str = one, other: str = other) -> Question:
            head, tail = wallet.key(one).rpartition("_")[0], wallet.key(other).split("_", 2)[2]
            return door.question(bearer(f"{head}_{tail}"))

        yield Case(f"id of {one}, secret of {other}, {door.name}", "dead", crossed, 401, "not_allowed")


def _schemes() -> Iterator[Case]:
    for door, (how, form) in itertools.product(DOORS, SCHEMES.items()):

        def ask(wallet: Wallet, door: Door = door, form: str = form) -> Question:
            return door.question(("authorization", form.format(wallet.key("acme"))))

        yield Case(f"scheme: {how}, {door.name}", "scheme", ask, 401, "not_allowed")


def _keys_elsewhere() -> Iterator[Case]:
    for door, name in itertools.product(DOORS, ELSEWHERE):

        def ask(wallet: Wallet, door: Door = door, name: str = name) -> Question:
            return door.question((name, wallet.key("acme")))

        yield Case(f"key in {name}, {door.name}", "elsewhere", ask, 401, "not_allowed")


def _keys_in_urls() -> Iterator[Case]:
    for door, name in itertools.product(DOORS, IN_URL):

        def ask(wallet: Wallet, door: Door = door, name: str = name) -> Question:
            return door.question(query=f"{name}={wallet.key('acme')}")

        yield Case(f"key in the url as {name}, {door.name}", "url", ask, 401, "not_allowed")


def _origins() -> Iterator[Case]:
    for (how, origin), door in itertools.product(NEAR.items(), DOORS):

        def with_key(wallet: Wallet, door: Door = door, origin: str = origin) -> Question:
            return door.question(bearer(wallet.key("acme")), ("origin", origin))

        yield Case(f"origin: {how}, key, {door.name}", "origin", with_key, 403, "forbidden")
    for how, origin in NEAR.items():

        def with_ticket(wallet: Wallet, origin: str = origin) -> Question:
            return CHAT.question(("origin", origin), query=f"ticket={wallet.ticket('acme', PAGE)}")

        def with_any_ticket(wallet: Wallet, origin: str = origin) -> Question:
            return CHAT.question(("origin", origin), query=f"ticket={wallet.ticket('acme', None)}")

        yield Case(f"origin: {how}, ticket of the page", "origin", with_ticket, 401, "not_allowed")
        yield Case(f"origin: {how}, ticket of its server", "origin", with_any_ticket, 403, "forbidden")
    for door in DOORS:
        yield Case(
            f"origin: page of another tenant, {door.name}",
            "origin",
            lambda wallet, door=door: door.question(bearer(wallet.key("beta")), ("origin", PAGE)),  # type: ignore[misc]
            403,
            "forbidden",
        )


def _tickets() -> Iterator[Case]:
    page = ("origin", PAGE)
    for how, mangle in TICKETS.items():

        def mangled(wallet: Wallet, mangle: Callable[[str], str] = mangle) -> Question:
            return CHAT.question(page, query=f"ticket={mangle(wallet.ticket('acme', PAGE))}")

        yield Case(f"ticket: {how}", "ticket", mangled, 401, "not_allowed")
    for name in ("Ticket", "TICKET", "ticket[]", "ticket.", "tickets", "auth_id"):

        def misnamed(wallet: Wallet, name: str = name) -> Question:
            return CHAT.question(page, query=f"{name}={wallet.ticket('acme', PAGE)}")

        yield Case(f"ticket: named {name}", "ticket", misnamed, 401, "not_allowed")
    for origin, where in ((PAGE, "its page"), (None, "a server")):

        def replayed(wallet: Wallet, origin: str | None = origin) -> Question:
            ticket = wallet.ticket("acme", origin)
            wallet.spend(ticket, origin)
            return CHAT.question(*([("origin", origin)] if origin else []), query=f"ticket={ticket}")

        yield Case(f"ticket: used before, from {where}", "ticket", replayed, 401, "not_allowed")
    for how, origin in (("nobody", None), ("another page", "https://evil.example")):

        def burnt(wallet: Wallet, origin: str | None = origin) -> Question:
            ticket = wallet.ticket("acme", PAGE)
            wallet.spend(ticket, origin)
            return CHAT.question(page, query=f"ticket={ticket}")

        yield Case(f"ticket: shown by {how} before", "ticket", burnt, 401, "not_allowed")

    def without_page(wallet: Wallet) -> Question:
        return CHAT.question(query=f"ticket={wallet.ticket('acme', PAGE)}")

    yield Case("ticket: of a page, without an origin", "ticket", without_page, 401, "not_allowed")
    for door, (name, header) in itertools.product(DOORS, (("bearer", bearer), ("own", own))):

        def as_key(wallet: Wallet, door: Door = door, header: Callable[[str], tuple[str, str]] = header) -> Question:
            return door.question(page, header(wallet.ticket("acme", PAGE)))

        yield Case(f"ticket: as a key, {name}, {door.name}", "ticket", as_key, 401, "not_allowed")
    for door in (TICKET, USAGE):

        def in_query(wallet: Wallet, door: Door = door) -> Question:
            return door.question(page, query=f"ticket={wallet.ticket('acme', PAGE)}")

        yield Case(f"ticket: at {door.name}", "ticket", in_query, 401, "not_allowed")


def _timely_tickets() -> Iterator[Case]:
    for origin, where in ((PAGE, "its page"), (None, "a server")):

        def late(wallet: Wallet, origin: str | None = origin) -> Question:
            ticket = wallet.ticket("acme", origin)
            wallet.wait_out()
            return CHAT.question(*([("origin", origin)] if origin else []), query=f"ticket={ticket}")

        yield Case(f"ticket: expired, from {where}", "late", late, 401, "not_allowed", timely=True)


def _twice() -> Iterator[Case]:
    for door in DOORS:
        pairs: dict[str, Callable[[Wallet], tuple[tuple[str, str], ...]]] = {
            "the same key": lambda wallet: (bearer(wallet.key("acme")),) * 2,
            "good key, then nonsense": lambda wallet: (bearer(wallet.key("acme")), bearer("x")),
            "nonsense, then good key": lambda wallet: (bearer("x"), bearer(wallet.key("acme"))),
            "keys of two tenants": lambda wallet: (bearer(wallet.key("acme")), bearer(wallet.key("beta"))),
            "two headers, two keys": lambda wallet: (bearer(wallet.key("acme")), own(wallet.key("beta"))),
            "two headers, one dead": lambda wallet: (own(wallet.key("acme")), bearer(wallet.key("revoked"))),
            "own header twice": lambda wallet: (own(wallet.key("acme")),) * 2,
            "own page, then another": lambda wallet: (
                bearer(wallet.key("acme")),
                ("origin", PAGE),
                ("origin", "https://evil.example"),
            ),
            "another page, then own": lambda wallet: (
                bearer(wallet.key("acme")),
                ("origin", "https://evil.example"),
                ("origin", PAGE),
            ),
        }
        for how, headers in pairs.items():

            def ask(
                wallet: Wallet,
                door: Door = door,
                headers: Callable[[Wallet], tuple[tuple[str, str], ...]] = headers,
            ) -> Question:
                return door.question(*headers(wallet))

            yield Case(f"twice: {how}, {door.name}", "twice", ask, 401, "not_allowed")

    def tickets(wallet: Wallet) -> Question:
        one, other = (wallet.ticket("acme", PAGE) for _ in range(2))
        return CHAT.question(("origin", PAGE), query=f"ticket={one}&ticket={other}")

    def good_last(wallet: Wallet) -> Question:
        return CHAT.question(("origin", PAGE), query=f"ticket=x&ticket={wallet.ticket('acme', PAGE)}")

    yield Case("twice: two tickets", "twice", tickets, 401, "not_allowed")
    yield Case("twice: nonsense, then a ticket", "twice", good_last, 401, "not_allowed")


def _names() -> Iterator[Case]:
    """Names that lead elsewhere: refused to whom we know, and not looked at for a stranger."""
    for how, name in PATHS.items():
        for parameter in ("voice_prompt", "condition.mood"):

            def known(wallet: Wallet, query: str = f"{parameter}={name}") -> Question:
                return CHAT.question(bearer(wallet.key("acme")), query=query)

            yield Case(f"name: {how}, {parameter}", "name", known, 400, "bad_parameter")

        def as_condition(wallet: Wallet, query: str = f"condition.{name}=calm") -> Question:
            return CHAT.question(bearer(wallet.key("acme")), query=query)

        def unknown(wallet: Wallet, query: str = f"voice_prompt={name}") -> Question:
            return CHAT.question(query=query)

        def as_day(wallet: Wallet, query: str = f"first={name}") -> Question:
            return USAGE.question(bearer(wallet.key("acme")), query=query)

        def as_format(wallet: Wallet, query: str = f"format={name}") -> Question:
            return USAGE.question(bearer(wallet.key("acme")), query=query)

        yield Case(f"name: {how}, of a condition", "name", as_condition, 400, "bad_parameter")
        yield Case(f"name: {how}, of a stranger", "name", unknown, 401, "not_allowed")
        yield Case(f"name: {how}, first day", "name", as_day, 400, "bad_parameter")
        yield Case(f"name: {how}, format", "name", as_format, 400, "bad_parameter")


def _models() -> Iterator[Case]:
    for how, name in PATHS.items():

        def known(wallet: Wallet, query: str = f"model={name}") -> Question:
            return CHAT.question(bearer(wallet.key("acme")), query=query)

        def unknown(wallet: Wallet, query: str = f"model={name}") -> Question:
            return CHAT.question(query=query)

        yield Case(f"model: {how}", "model", known, 404, "unknown_model")
        yield Case(f"model: {how}, of a stranger", "model", unknown, 401, "not_allowed")


def _resumptions() -> Iterator[Case]:
    """Tokens that nobody was given: no way back for whom we know, and not looked at for a stranger."""
    for how, token in (PATHS | {"nonsense": "x", "like one": f"e.{'A' * 43}", "star": "*"}).items():

        def known(wallet: Wallet, query: str = f"resume={token}") -> Question:
            return CHAT.question(bearer(wallet.key("acme")), query=query)

        def unknown(wallet: Wallet, query: str = f"resume={token}") -> Question:
            return CHAT.question(query=query)

        yield Case(f"resume: {how}", "resume", known, 410, "session_gone")
        yield Case(f"resume: {how}, of a stranger", "resume", unknown, 401, "not_allowed")


def _roads() -> Iterator[Case]:
    for (how, path), socket in itertools.product(ROADS.items(), (False, True)):
        kind = "socket" if socket else "page"
        reason = "unknown_model" if socket and path.startswith("/api/chat/") else "not_found"

        def ask(wallet: Wallet, door: Door = Door(kind, "GET", path, socket)) -> Question:
            return door.question(bearer(wallet.key("acme")))

        yield Case(f"path: {how}, {kind}", "path", ask, 404, reason)


def _tricks() -> Iterator[Case]:
    for (how, header), door in itertools.product(TRICKS.items(), DOORS):

        def ask(wallet: Wallet, door: Door = door, header: tuple[str, str] = header) -> Question:
            return door.question(header)

        yield Case(f"header: {how}, {door.name}", "header", ask, 401, "not_allowed")


def _tenants() -> Iterator[Case]:
    """Whom we know and who may not: exactly its own refusal."""
    for parameter, value in VALUES.items():

        def forbidden(wallet: Wallet, query: str = f"{parameter}={value}") -> Question:
            return CHAT.question(bearer(wallet.key("narrow")), query=query)

        yield Case(f"tenant: may not set {parameter}", "tenant", forbidden, 403, "forbidden")
    for whose, status, reason in (
        ("elsewhere", 403, "forbidden"),
        ("closed", 429, "too_many_sessions"),
        ("spent", 429, "day_spent"),
    ):

        def ask(wallet: Wallet, whose: str = whose) -> Question:
            return CHAT.question(bearer(wallet.key(whose)))

        def for_a_ticket(wallet: Wallet, whose: str = whose) -> Question:
            return TICKET.question(bearer(wallet.key(whose)))

        yield Case(f"tenant: {whose}", "tenant", ask, status, reason)
        if status == 429:
            yield Case(f"tenant: {whose}, ticket", "tenant", for_a_ticket, status, reason)

    def by_ticket(wallet: Wallet) -> Question:
        return CHAT.question(query=f"ticket={wallet.ticket('elsewhere', None)}")

    yield Case("tenant: elsewhere, by ticket", "tenant", by_ticket, 403, "forbidden")
