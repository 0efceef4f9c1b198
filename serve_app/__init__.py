"""Chorus: many Moshi conversations in one batch on one GPU."""

__version__ = "0.1.0"
