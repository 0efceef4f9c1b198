"""What a person sees while a file is talked through."""

import sys
from typing import Final, TextIO

from serve_app.client.events import Place

WIDTH: Final = 100
_BARS: Final = " ▁▂▃▄▅▆▇█"


class Progress:
    """Shows transcript and progress as they come.

    On a terminal: one line that is redrawn, with the end of the transcript, and the whole of it at the end. Elsewhere
    the transcript alone, piece by piece, so that it can be piped; words about the session go aside.
    """

    def __init__(self, out: TextIO, *, redraw: bool, aside: TextIO | None = None) -> None:
        self._out = out
        self._aside = aside if aside is not None else sys.stderr
        self._place = 0
        self._redraw = redraw
        self._text = ""

    def text(self, piece: str) -> None:
        """The server wrote this."""
        self._text += piece
        if not self._redraw:
            self._out.write(piece)
            self._out.flush()

    def note(self, message: str) -> None:
        """The server said this about the session."""
        out, head = (self._out, "\r\x1b[K") if self._redraw else (self._aside, "")
        out.write(f"{head}{message}\n")
        out.flush()

    def waiting(self, place: Place) -> None:
        """The server has no room yet: its queue, redrawn on a terminal, elsewhere one line on stderr a place."""
        if self._redraw:
            self._out.write(f"\r\x1b[K{place}")
            self._out.flush()
        elif place.place != self._place:
            self._aside.write(f"{place}\n")
            self._aside.flush()
        self._place = place.place

    def frame(self, at_s: float, of_s: float, spoken: float, heard: float, round_trip_s: float | None) -> None:
        """A frame was sent; levels are root mean squares in [0, 1]."""
        if not self._redraw:
            return
        trip = "   ..." if round_trip_s is None else f"{1_000 * round_trip_s:4.0f} ms"
        head = f"{at_s:6.1f} / {of_s:.1f} s  you {_bar(spoken)}  answer {_bar(heard)}  round trip {trip}  "
        tail = self._text.replace("\n", " ")[-max(0, WIDTH - len(head)) :]
        self._out.write(f"\r\x1b[K{head}{tail}")
        self._out.flush()

    def finish(self) -> None:
        """The conversation is over."""
        self._out.write(f"\r\x1b[K{self._text.strip()}\n" if self._redraw else "\n" if self._text else "")
        self._out.flush()


def _bar(level: float) -> str:
    return _BARS[min(len(_BARS) - 1, round(level * 3 * (len(_BARS) - 1)))]
