import io

from serve_app.offline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_files_and_speed() -> None:
    now = [0.0]
    out = Terminal()
    progress = Progress(2, out, lambda: now[0])
    now[0] = 0.8
    progress.on_tick(20)
    progress.on_file()
    progress.on_file()
    assert "2/2 files, 2.0x real time" in out.getvalue()


def test_what_is_no_terminal_sees_nothing() -> None:
    out = io.StringIO()
    progress = Progress(1, out)
    progress.on_tick(1)
    progress.on_file()
    progress.close()
    assert out.getvalue() == ""


def test_the_line_is_not_rewritten_for_every_tick() -> None:
    out = Terminal()
    progress = Progress(1, out, lambda: 5.0)
    for _ in range(100):
        progress.on_tick(1)
    assert out.getvalue().count("\r") == 1
