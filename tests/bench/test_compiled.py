"""Whether compiling would pay: the command's own arithmetic, on parts that are not compiled."""

import json
from typing import Any

import pytest
import torch

from serve_app.bench import compiled


def test_both_parts_are_told_as_they_are_and_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def uncompiled(call: compiled.Call, **options: Any) -> compiled.Call:
        made.append(options)
        return call

    monkeypatch.setattr(torch, "compile", uncompiled)
    words = ["--lm", "tiny", "--codec", "tiny", "--rows", "1,2", "--repeat", "2"]
    assert compiled.main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(one["part"], one["rows"]) for one in found] == [(part, rows) for part in compiled.PARTS for rows in (1, 2)]
    assert all(one["plain_ms"] > 0 < one["compiled_ms"] for one in found)
    assert [one["options"] for one in made] == 4 * [compiled.OPTIONS]
