"""How much sound and how many mistakes a session may send."""

from typing import Final

from serve_app.budget import Budget

AUDIO_RATE: Final = 1.25
"""Seconds of audio a second: real time, a fast clock, and catching up after a stall."""
AUDIO_BURST_S: Final = 5.0
ERROR_RATE_HZ: Final = 0.1
ERROR_BURST: Final = 20.0
"""Messages with something wrong in them: a stumble is forgiven, a stream that is not Opus ends in seconds."""


def audio_budget() -> Budget:
    """Seconds of audio that one session may send."""
    return Budget(AUDIO_RATE, AUDIO_BURST_S)


def error_budget() -> Budget:
    """Bad messages that one session may send."""
    return Budget(ERROR_RATE_HZ, ERROR_BURST)
