"""The channels of one link, whichever kind it is: opened by a grant, fed by key, ended together."""

from collections.abc import Callable
from typing import Final

from serve_app.errors import EngineLost, StaleLease
from serve_app.link.channel import Channel
from serve_app.link.messages import Attach, Downward, Ended, Key, Upward
from serve_app.link.port import Grant

ATTACH_S: Final = 2.0


class Channels:
    """Belongs to one event loop.

    Args:
        transmit: takes what goes up; on the loop, never blocks.

    Attributes:
        attached: channels that were opened since the link was made. A link with none is closed by the engine after a
            while, which says nothing about the engine.
    """

    def __init__(self, transmit: Callable[[Upward], None]) -> None:
        self._transmit = transmit
        self._open: dict[Key, Channel] = {}
        self.lost = False
        self.attached = 0

    def __len__(self) -> int:
        return len(self._open)

    async def attach(self, grant: Grant, *, timeout_s: float = ATTACH_S) -> Channel:
        """Open the granted slot and wait until it is primed.

        Raises: StaleLease for a grant that is used, expired or forged; EngineLost when the link is gone or no answer
        comes in time; the session's error when opening failed.
        """
        if self.lost:
            raise EngineLost
        if grant.key in self._open:
            raise StaleLease(*grant.key)
        channel = self._open[grant.key] = Channel(grant.key, self._transmit)
        opened = False
        try:
            self._transmit(Attach(grant.key, grant.token))
            await channel.opened(timeout_s)
            opened = True
            self.attached += 1
        except TimeoutError as error:
            raise EngineLost from error
        finally:
            if not opened:  # nobody holds the channel: an Ended, which may never come, has nobody to tell
                channel.close()
                if self._open.get(grant.key) is channel:
                    del self._open[grant.key]
        return channel

    def deliver(self, message: Downward) -> None:
        """Take one message; one for nobody is an output that crossed our Detach."""
        channel = self._open.get(message.key)
        if channel is not None:
            channel.deliver(message)
            if isinstance(message, Ended):
                del self._open[message.key]

    def lose(self) -> None:
        """The link is gone: every channel that is left ends with EngineLost."""
        self.lost = True
        left, self._open = self._open, {}
        for key, channel in left.items():
            channel.deliver(Ended.of(key, EngineLost()))
