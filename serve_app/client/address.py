"""From what a person types to the address of a chat, with its parameters as the web client spells them."""

import dataclasses
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from serve_app.errors import ParameterRefused
from serve_app.spec import Sampling

CHAT_PATH: Final = "/api/chat"

_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_SPELLING: Final = {"text_top_k": "text_topk", "audio_top_k": "audio_topk"}


def with_parameter(address: str, name: str, value: str) -> str:
    """A WebSocket address that asks for one thing more, or for another value of it."""
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query, keep_blank_values=True)) | {name: value}
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))


def chat_url(url: str, sampling: Sampling | None = None) -> str:
    """``localhost:8998``, ``https://host`` or ``ws://host/api/chat?x=1`` to the WebSocket address of the chat.

    A query that is already in the address is kept; ``sampling`` adds to it and wins. Without ``sampling`` the server's
    defaults hold, with a seed of the server's choice.

    Raises:
        ParameterRefused: no host, or another scheme.
    """
    try:
        parts = urlsplit(url if "://" in url else f"ws://{url}")
        _ = parts.port  # read to be checked
    except ValueError as error:
        raise ParameterRefused("url", url, str(error)) from error
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ParameterRefused("url", url, "must start with ws://, wss://, http:// or https://")
    if not parts.hostname:
        raise ParameterRefused("url", url, "names no host")
    path = parts.path if parts.path not in ("", "/") else CHAT_PATH
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if sampling is not None:
        fields = dataclasses.asdict(sampling).items()
        query.update({_SPELLING.get(name, name): str(value) for name, value in fields})
    return urlunsplit((scheme, parts.netloc, path, urlencode(query), ""))
