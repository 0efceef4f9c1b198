"""Every bound of the link in one place."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """How much may wait, how many may come, and for how long.

    Attributes:
        session_bytes: of one session that may wait on one connection; its oldest frame goes then. Twice the engine's
            inbox of 16 frames of 7.7 kB: a burst that the engine would take must not be lost on the way.
        connection_bytes: of all sessions that may wait on one connection; the connection goes then.
        connection_sessions: sessions that may have something waiting on one connection; the connection goes beyond.
        connections: gateways that one engine lets in.
        refusals: attaches without a good grant, on a connection that never had a good one, before it is closed.
        hello_s: a connection that has not said hello by then is closed.
        attach_s: a connection that said hello and has never had a good attach by then is closed; one that has may idle.
        close_s: how long a closing side waits for the peer to read what is still to be said.
    """

    session_bytes: int = 256 * 1_024
    connection_bytes: int = 64 * 1_024 * 1_024
    connection_sessions: int = 4_096
    connections: int = 512
    refusals: int = 16
    hello_s: float = 2.0
    attach_s: float = 10.0
    close_s: float = 1.0
