"""How long a session may last: a word a minute before, then a clean close."""

from typing import Final

from serve_app.errors import SessionOver
from serve_app.serving.caller import Caller, Sleep, Tell

WARNING_S: Final = 60.0
"""So long before its end a session is told."""


async def mind_term(caller: Caller, tell: Tell, sleep: Sleep) -> None:
    """Live as long as the session may. A session that may last less than the warning is told at once.

    Raises:
        SessionOver: its time is up.
    """
    await caller.live()
    left_s = caller.left_s
    warning_s = min(WARNING_S, left_s)
    await sleep(left_s - warning_s)
    await tell({"session": {"ends_in_s": round(warning_s)}})
    await sleep(warning_s)
    raise SessionOver(caller.longest_s)
