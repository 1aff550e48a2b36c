"""The gate that every gRPC call passes: which method it is for, and whether it is taken."""

from __future__ import annotations

from collections.abc import Iterable

from service.access.keys import bearer
from service.access.ring import Ring
from service.errors import FoveaError, Overloaded
from service.transports.grpc.calls import RETRY_AFTER, Call, InFlight, Method, StreamCall, UnaryCall
from service.transports.grpc.http2.connection import Receiver, Stream
from service.transports.grpc.http2.headers import Headers, status
from service.transports.grpc.rpc import Rpc, not_grpc


class Gate:
    """Finds the method of each call, and asks for a key where keys are needed.

    Args:
        methods: All there are.
        calls: Those in flight.
        ring: Knows the keys.
    """

    def __init__(self, methods: Iterable[Method], calls: InFlight, ring: Ring) -> None:
        self._ring = ring
        self._methods = {method.name: method for method in methods}
        self._calls = calls

    def opened(self, stream: Stream, headers: Headers) -> Receiver:
        """What a connection asks when a request begins, before any of its body has come."""
        if (wrong := not_grpc(headers)) is not None:
            stream.send(None, trailers=status(wrong))
            return _Nobody()
        limits = self._calls.limits
        rpc = Rpc(stream, headers, max_bytes=limits.max_message_bytes, patience=limits.max_timeout)
        method = self._methods.get(rpc.method)
        most = limits.max_calls
        busy = len(self._calls.calls) >= most
        shown = method or Method(rpc.method, _nothing, open=True)
        call: Call = (StreamCall if shown.streams else UnaryCall)(self._calls, shown, rpc)
        call.begin()
        try:
            rpc.begin(call)
            if method is None:
                raise _NoSuchMethod(f"there is no method {rpc.method[:200]} here; reflection lists what there is")
            if busy:
                raise Overloaded(f"{most} calls at once are as many as are taken", retry_after=RETRY_AFTER)
            self._admit(call, rpc.metadata.get(b"authorization"))
        except FoveaError as error:
            call.refuse(error)
        else:
            if method.streams:
                call.start()
            else:
                rpc.expect()
        return rpc

    def _admit(self, call: Call, given: bytes | None) -> None:
        """Raises: FoveaError: The key that came with the call does not say that it is taken."""
        if call.method.open:
            return
        call.caller = self._ring.check(None if given is None else bearer(given.decode("latin-1")))
        if call.caller is not None and isinstance(call, UnaryCall):  # of a stream, each message is counted
            call.pending = call.caller.charge()


class _Nobody:
    """Hears of what comes with a request that has been answered. Satisfies `Receiver`."""

    def received(self, data: bytes) -> None:
        del data

    def ended(self) -> None:
        pass

    def broken(self) -> None:
        pass

    def drained(self) -> None:
        pass


class _NoSuchMethod(FoveaError):
    code = "unknown_method"


async def _nothing() -> None:
    """The answer of a method that is not there, which nobody asks for."""
