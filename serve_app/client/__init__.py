"""The client's side of a conversation: a session for programs, and WAV files for the command line."""

from serve_app.client.events import Audio, Error, Event, Metadata, Place, Text
from serve_app.client.failures import (
    AudioFileError,
    NotAllowed,
    RequestRefused,
    ServerFull,
    ServerGone,
    ServerUnreachable,
    UnexpectedServer,
)
from serve_app.client.round_trip import RoundTrips
from serve_app.client.session import Session

__all__ = [
    "Audio",
    "AudioFileError",
    "Error",
    "Event",
    "Metadata",
    "NotAllowed",
    "Place",
    "RequestRefused",
    "RoundTrips",
    "ServerFull",
    "ServerGone",
    "ServerUnreachable",
    "Session",
    "Text",
    "UnexpectedServer",
]
