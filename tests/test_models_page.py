"""The page about models names every card, every shape and every test that it leans on."""

import re
from pathlib import Path
from typing import Final

import pytest

from serve_app.demo.shapes import SHAPES
from serve_app.registry import known_models, read_card

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "models.md").read_text("utf-8")


@pytest.mark.parametrize("name", known_models())
def test_every_card_has_its_row(name: str) -> None:
    row = next((line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line), "")
    assert row, f"{name} is not in the table"
    assert ("not served" in row) != read_card(name).built


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape_has_its_example(shape: str) -> None:
    assert f"`random_checkpoint {shape} " in PAGE


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)`", PAGE)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []
