"""The dashboard and the rules that ship, as expressions."""

import json
from pathlib import Path
from typing import Final

import yaml

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus" / "rules.yml"
BOARD: Final = DEPLOY / "grafana" / "chorus.json"


def board_expressions() -> dict[str, str]:
    """Of every line on the dashboard, by panel and legend."""
    board = json.loads(BOARD.read_text())
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }


def recorded_expressions() -> dict[str, str]:
    """By the name of what they record; alerts compare nothing but these and what is absent."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"]: rule["expr"] for rule in group["rules"] if "record" in rule}


def alerts() -> dict[str, str]:
    """By name."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"] if "alert" in rule}
