"""Bytes from a stranger to frames of PCM, and frames back to bytes. The only room that knows a codec library."""
