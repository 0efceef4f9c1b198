"""What strangers try, by name: keys that are nearly one, origins that are nearly the page's, names with path parts."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Final


def half(key: str) -> str:
    return key[: len(key) // 2]


def turned(key: str, place: int) -> str:
    return key[:place] + ("B" if key[place] == "A" else "A") + key[place + 1 :]


MANGLED: Final[Mapping[str, Callable[[str], str]]] = {
    "empty": lambda key: "",
    "one short": lambda key: key[:-1],
    "first letter gone": lambda key: key[1:],
    "half": half,
    "id alone": lambda key: key.rsplit("_", 1)[0],
    "secret alone": lambda key: key.split("_", 2)[2],
    "prefix alone": lambda key: "chorus_",
    "one too many": lambda key: key + "A",
    "dot after": lambda key: key + ".",
    "equals sign after": lambda key: key + "=",
    "last letter turned": lambda key: turned(key, len(key) - 2),
    "first of secret turned": lambda key: turned(key, key.index("_", 7) + 1),
    "letter of id turned": lambda key: key[:8] + ("0" if key[8] != "0" else "1") + key[9:],
    "id of nobody": lambda key: "chorus_000000000000_" + key.split("_", 2)[2],
    "swapped case": str.swapcase,
    "capitals": str.upper,
    "small letters": lambda key: key.lower() if key.lower() != key else key.upper(),
    "backwards": lambda key: key[::-1],
    "twice": lambda key: key + key,
    "twice with comma": lambda key: f"{key}, {key}",
    "space inside": lambda key: key[:30] + " " + key[30:],
    "tab inside": lambda key: key[:30] + "\t" + key[30:],
    "quoted": lambda key: f'"{key}"',
    "in brackets": lambda key: f"<{key}>",
    "percent encoded": lambda key: key.replace("_", "%5F"),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "its hash": lambda key: hashlib.sha256(key.encode()).hexdigest(),
    "its hash as a key": lambda key: key[:20] + hashlib.sha256(key.encode()).hexdigest()[:43],
    "another prefix": lambda key: "moshi" + key[6:],
    "prefix in capitals": lambda key: "CHORUS" + key[6:],
    "dashes for underscores": lambda key: key.replace("_", "-"),
    "accent after": lambda key: key + "\xe9",
    "no-break space after": lambda key: key + "\xa0x",
    "full stop for a letter": lambda key: key[:40] + "." + key[41:],
    "json": lambda key: f'{{"key": "{key}"}}',
    "null": lambda key: "null",
    "undefined": lambda key: "undefined",
    "sql": lambda key: "' OR '1'='1",
    "path to the keys": lambda key: "../keys.json",
    "star": lambda key: "*",
    "very long": lambda key: key * 100,
    "long nonsense": lambda key: "chorus_000000000000_" + "A" * 4_000,
}
"""What is made of a good key. None is the key itself."""

SCHEMES: Final = {
    "basic": "Basic {}",
    "token": "Token {}",
    "digest": "Digest {}",
    "no scheme": "{}",
    "colon": "Bearer: {}",
    "glued": "Bearer{}",
    "tab": "Bearer\t{}",
    "comma": "Bearer,{}",
    "twice": "Bearer Bearer {}",
    "no-break space": "Bearer\xa0{}",
}
ELSEWHERE: Final = (
    "cookie",
    "x-api-key",
    "proxy-authorization",
    "sec-websocket-protocol",
    "x-auth-token",
    "x-authorization",
    "kyutai_api_key",
    "www-authenticate",
)
"""Headers in which a key is not looked for."""
IN_URL: Final = (
    "auth_id",
    "worker_auth_id",
    "key",
    "api_key",
    "token",
    "access_token",
    "ticket",
    "authorization",
    "kyutai-api-key",
    "Ticket",
)
"""Parameters in which a key is not looked for."""

NEAR: Final = {
    "another name": "https://evil.example",
    "its name at the end": "https://evilacme.example",
    "its name at the start": "https://acme.example.evil",
    "below it": "https://www.acme.example",
    "above it": "https://example",
    "dash for dot": "https://acme-example",
    "plain http": "http://acme.example",
    "websocket scheme": "wss://acme.example",
    "other port": "https://acme.example:8443",
    "written default port": "https://acme.example:443",
    "port zero": "https://acme.example:0",
    "user before": "https://user@acme.example",
    "it as user": "https://acme.example@evil.example",
    "it as user and port": "https://acme.example:443@evil.example",
    "path": "https://acme.example/x",
    "query": "https://acme.example?x",
    "fragment": "https://acme.example#x",
    "it in a path": "https://evil.example/https://acme.example",
    "it in a fragment": "https://evil.example#https://acme.example",
    "dot after": "https://acme.example.",
    "dot before": "https://.acme.example",
    "backslash": "https:\\\\acme.example",
    "one slash": "https:/acme.example",
    "no scheme": "//acme.example",
    "bare name": "acme.example",
    "list": "https://acme.example, https://evil.example",
    "list with spaces": "https://evil.example https://acme.example",
    "space inside": "https://acme. example",
    "percent encoded": "https://acme%2eexample",
    "punycode": "https://xn--acme-epa.example",
    "accent": "https://acm\xe9.example",
    "null": "null",
    "empty": "",
    "star": "*",
    "file": "file://",
    "extension": "chrome-extension://acme.example",
    "data": "data:text/html,x",
    "loopback, another port": "http://localhost:9999",
    "loopback by number": "http://127.0.0.1:9999",
    "loopback, no port": "http://localhost",
    "all addresses": "http://0.0.0.0:8998",
    "very long": "https://" + "a" * 2_000 + ".example",
}
"""Origins that look like the page's, or like something trusted."""

PATHS: Final = {
    "up": "../alba",
    "far up": "../../../../etc/passwd",
    "up, encoded": "..%2falba",
    "up, encoded twice": "%252e%252e%252falba",
    "dots encoded": "%2e%2e/alba",
    "root": "/etc/passwd",
    "backslash": "..%5calba",
    "nul": "alba%00",
    "nul before an ending": "alba%00.wav",
    "there and back": "alba/../alba",
    "home": "~/alba",
    "address": "file:///etc/passwd",
    "host": "//evil.example/alba",
    "dot": ".",
    "line": "alba%0d%0aX-Evil:1",
    "overlong": "%c0%ae%c0%ae%c0%afalba",
    "very long": "a" * 3_000,
    "bar": "alba|id",
    "dollar": "$(id)",
}
"""Names with path parts, and other tricks of their kind, as they stand in a URL."""

ROADS: Final = {
    "up": "/../../../etc/passwd",
    "up, encoded": "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "slash encoded": "/vendor/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "from a folder": "/vendor/../../serve_app/config.py",
    "backslash": "/..%5c..%5cetc%5cpasswd",
    "nul": "/index.html%00.js",
    "two slashes": "//etc/passwd",
    "keys": "/keys.json",
    "tenants": "/tenants.yaml",
    "dot file": "/.git/config",
    "capitals": "/api/CHAT",
    "two slashes in chat": "/api//chat",
    "chat from below": "/api/x/../chat/x",
    "parameters": "/api/chat;x=1",
    "overlong": "/%c0%ae%c0%ae/etc/passwd",
    "very long": "/" + "a" * 3_000,
    "admin": "/api/-/routes",
    "tenant in a path": "/api/tenants/acme",
}
"""Paths at which nothing lives."""

TRICKS: Final = {
    "timeout": ("x-request-timeout-seconds", "0"),
    "timeout below zero": ("x-request-timeout-seconds", "-1"),
    "timeout that is none": ("x-request-timeout-seconds", "nan"),
    "no disconnect": ("x-request-disconnect-disabled", "1"),
    "request id": ("x-request-id", "../../etc/passwd"),
    "long request id": ("x-request-id", "a" * 4_000),
    "model id": ("serve_multiplexed_model_id", "../m"),
    "tenant": ("x-tenant", "acme"),
    "user": ("x-forwarded-user", "acme"),
    "address": ("x-forwarded-for", "127.0.0.1"),
    "host": ("x-forwarded-host", "localhost"),
    "forwarded": ("forwarded", "for=127.0.0.1;host=localhost"),
    "url": ("x-original-url", "/health"),
    "method": ("x-http-method-override", "GET"),
    "content": ("content-type", "application/x-www-form-urlencoded"),
    "internal": ("x-ray-serve-internal", "1"),
}
"""Headers that somebody behind us might obey."""

VALUES: Final = {
    "text_temperature": "0.5",
    "audio_temperature": "0.5",
    "audio_topk": "10",
    "text_seed": "1",
    "audio_seed": "1",
    "seed": "1",
    "cfg_coef": "1",
    "pad_mult": "0",
    "extra_heads": "0",
    "repetition_penalty": "1",
    "repetition_penalty_context": "64",
}

TICKETS: Final[Mapping[str, Callable[[str], str]]] = {
    "empty": lambda ticket: "",
    "one short": lambda ticket: ticket[:-1],
    "half": half,
    "one too many": lambda ticket: ticket + "A",
    "padded": lambda ticket: ticket + "%3D",
    "swapped case": str.swapcase,
    "backwards": lambda ticket: ticket[::-1],
    "twice": lambda ticket: ticket + ticket,
    "space before": lambda ticket: "%20" + ticket,
    "line after": lambda ticket: ticket + "%0A",
    "nul after": lambda ticket: ticket + "%00",
    "accent": lambda ticket: ticket + "%C3%A9",
    "no utf-8": lambda ticket: ticket + "%FF",
    "its hash": lambda ticket: hashlib.sha256(ticket.encode()).hexdigest(),
    "quoted": lambda ticket: f"%22{ticket}%22",
    "very long": lambda ticket: ticket * 60,
    "star": lambda ticket: "*",
    "up": lambda ticket: "../" + ticket,
}
