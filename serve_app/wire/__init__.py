"""Kyutai's chat protocol without a socket: messages in, events out; both sides. Standard library only."""
