"""The bodies of ``/info`` and ``/ready``."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi.responses import JSONResponse

from serve_app.serving.answers import refusal
from serve_app.serving.directory import EngineCard
from serve_app.serving.meter import Meter
from serve_app.serving.process import package_versions, resident_bytes
from serve_app.serving.roster import Roster
from serve_app.spec import Offer
from serve_app.units import FRAME_RATE_HZ, RAW_AUDIO_KBPS

PACKAGES: Final = ("chorus-serve", "ray", "fastapi")


def readiness(roster: Roster, gateway: str) -> JSONResponse:
    """200 when a conversation of some model can start, and for every model ``ready`` or why not."""
    obstacles = {model.name: roster.obstacle(model=model.name) for model in roster.models}
    models = {name: "ready" if obstacle is None else obstacle.reason for name, obstacle in obstacles.items()}
    obstacle = roster.obstacle()
    if obstacle is not None:
        return refusal(obstacle, models=models)
    return JSONResponse({"status": "ready", "gateway": gateway, "models": models})


def describe(
    engines: Sequence[EngineCard],
    models: Sequence[str],
    meter: Meter,
    proxy: str,
    gateway: str,
    complaints: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that a person who runs this wants to see at one glance; bit rates are per conversation.

    What stands under no model's name is of the first, ``models[0]``, but for the slots: those are all that there are.
    With several gateways each answers for itself: its own numbers are under its name, the bit rates of Opus too.
    """
    first = next((card for name in models[:1] for card in engines if card.model == name), None)
    return {
        "model": first.model if first else None,
        "models": {name: _model([card for card in engines if card.model == name]) for name in models},
        "proxy_mode": proxy,
        "slots": sum(card.slots for card in engines),
        "slots_used": sum(card.used for card in engines),
        "slots_free": sum(card.free for card in engines),
        "parameters": _parameters(first.offer) if first else None,
        "state_bytes_per_slot": first.state_bytes_per_slot if first else None,
        "bit_rate": _bit_rates(first, meter),
        "versions": package_versions(PACKAGES),
        "gateway": {
            "name": gateway,
            "conversations": meter.conversations,
            "ended": dict(meter.endings),
            "refused": dict(meter.refusals),
            "process_bytes": resident_bytes(),
        },
        "engines": [_engine(card) for card in engines],
        "complaints": sorted({*complaints, *(complaint for card in engines for complaint in card.complaints)}),
    }


def _model(engines: Sequence[EngineCard]) -> dict[str, Any]:
    """One model: its engines together, which are none while all of them are gone."""
    return {
        "engines": len(engines),
        "slots": sum(card.slots for card in engines),
        "slots_used": sum(card.used for card in engines),
        "slots_free": sum(card.free for card in engines),
        "parameters": _parameters(engines[0].offer) if engines else None,
    }


def _bit_rates(card: EngineCard | None, meter: Meter) -> dict[str, Any]:
    tokens_kbps = card.dep_q * card.codebook_bits * FRAME_RATE_HZ / 1_000 if card else 0.0
    return {
        "raw_kbps": RAW_AUDIO_KBPS,
        "opus_in_kbps": round(meter.opus_in.kbps, 2),
        "opus_out_kbps": round(meter.opus_out.kbps, 2),
        "tokens_kbps": round(tokens_kbps, 3),
        "raw_to_tokens": round(RAW_AUDIO_KBPS / tokens_kbps, 1) if tokens_kbps else None,
    }


def _parameters(offer: Offer) -> dict[str, Any]:
    """What clients may put into the query, by the names that they use there."""
    return {
        "conditions": {name: list(values) if values else "any text" for name, values in offer.conditions},
        "cfg_coef": offer.guidance if offer.guided else None,
        "voices": list(offer.voices),
        "prompt_steps": offer.prompt_steps,
        "extra_heads": offer.extra_heads,
    }


def _engine(card: EngineCard) -> dict[str, Any]:
    return {
        "engine": card.engine,
        "model": card.model,
        "device": card.device,
        "dtype": card.dtype,
        "slots": card.slots,
        "slots_used": card.used,
        "rows": card.rows,
        "rows_used": card.rows_used,
        "draining": card.draining,
        "leaves_in_s": None if card.leaves_in_s is None else round(card.leaves_in_s),
        "healthy": card.healthy,
        "late": card.late,
        "state_bytes_per_slot": card.state_bytes_per_slot,
        "process_bytes": card.process_bytes,
        "rows_per_tick": round(card.rows_per_tick, 2),
        "ms_per_frame": {stage: round(spent_ms, 3) for stage, spent_ms in card.frame_ms.items()},
        "stage_ms": {
            stage: {"p50": round(p50_ms, 3), "p99": round(p99_ms, 3)}
            for stage, (p50_ms, p99_ms) in card.stage_ms.items()
        },
        "counters": dict(card.counters),
        "versions": dict(card.versions),
    }
