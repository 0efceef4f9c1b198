"""Where the page's files are: inside the package.

In a checkout ``serve_app/web`` is a link to the folder beside the package; where links are not kept, that one is taken.
"""

from pathlib import Path

PACKAGE: Path = Path(__file__).parents[1]


def page_folder() -> Path | None:
    """The folder with ``index.html``; None where there is none."""
    for folder in (PACKAGE / "web", PACKAGE.parent / "web"):
        if (folder / "index.html").is_file():
            return folder
    return None
