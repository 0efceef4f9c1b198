"""The sizes and names that every room shares.

Source: Moshi and Mimi (Défossez et al., 2024): 24 kHz mono PCM, one frame of 80 ms per model step.
"""

from typing import Final, NewType

SAMPLE_RATE_HZ: Final = 24_000
FRAME_SAMPLES: Final = 1_920
FRAME_RATE_HZ: Final = SAMPLE_RATE_HZ / FRAME_SAMPLES  # 12.5
FRAME_S: Final = FRAME_SAMPLES / SAMPLE_RATE_HZ  # 0.08
FRAME_MS: Final = 1_000 * FRAME_S  # 80.0
RAW_AUDIO_KBPS: Final = SAMPLE_RATE_HZ * 32 / 1_000  # float32 PCM, 768 kb/s: what the token rate is compared with

SessionId = NewType("SessionId", str)
"""Names one conversation in logs. Never a metric label."""
Slot = NewType("Slot", int)
"""A seat in the batch, and the row index of its state."""
Generation = NewType("Generation", int)
"""How often a slot has been leased; a stale one is dropped and counted."""
StepNumber = NewType("StepNumber", int)
"""Absolute step of one row, from 0 for the first frame of the session."""
