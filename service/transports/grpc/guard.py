"""Who may make calls that change the server: a key of scope admin, or where there are no keys, whoever it is told."""

from __future__ import annotations

from service.access.ring import Ring
from service.transports.grpc.calls import Call


class Guard:
    """Lets calls through that may change the server.

    Args:
        ring: Knows who may make them.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def authorize(self, call: Call) -> None:
        """Call before anything else is done.

        Raises:
            Forbidden: The call is not taken.
        """
        self._ring.permit_change(call.caller)
