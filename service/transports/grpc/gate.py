"""The gate that every gRPC call passes: which method it is for, and whether it is taken."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from service.access.keys import bearer
from service.access.ring import Ring
from service.errors import FoveaError, Overloaded
from service.transports.grpc import traced
from service.transports.grpc.calls import RETRY_AFTER, Call, InFlight, Method, StreamCall, UnaryCall


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc]
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

    def service(self, details: grpc.HandlerCallDetails) -> Call:
        """What grpc asks when a call begins: on the call's own task, before its message has come."""
        given = secret = None
        for key, value in details.invocation_metadata:
            if key == "x-request-id" and isinstance(value, str):
                given = value
            elif key == "authorization" and isinstance(value, str):
                secret = bearer(value)
        method = self._methods.get(details.method)
        call: Call
        if method is None:
            nothing = _NoSuchMethod(f"there is no method {details.method[:200]} here; reflection lists what there is")
            call = Refused(self._calls, Method(details.method, _nothing), given, nothing)
        elif len(self._calls.calls) >= (most := self._calls.limits.max_calls):
            busy = Overloaded(f"{most} calls at once are as many as are taken", retry_after=RETRY_AFTER)
            call = Refused(self._calls, method, given, busy)
        else:
            call = self._admitted(method, given, secret)
        call.begin()
        if (tracer := self._calls.accounts.tracer) is not None and method is not None and not method.open:
            call.carrier = traced.carrier_of(details.invocation_metadata)
            if not isinstance(call, StreamCall):
                traced.begin(tracer, call, method.name, call.carrier)
        return call

    def _admitted(self, method: Method, given: str | None, secret: str | None) -> Call:
        """A call that is taken, if the key that came with it says so."""
        call: UnaryCall | StreamCall = (StreamCall if method.streams else UnaryCall)(self._calls, method, given)
        if method.open:
            return call
        try:
            call.caller = self._ring.check(secret)
            if call.caller is not None and isinstance(call, UnaryCall):  # of a stream, each message is counted
                call.pending = call.caller.charge()
        except FoveaError as error:
            refused = Refused(self._calls, method, given, error)
            refused.caller = call.caller
            return refused
        return call


class Refused(Call):
    """A call that is not taken; its message is not read."""

    __slots__ = ("_error",)

    request_streaming = response_streaming = True

    def __init__(self, others: InFlight, method: Method, given: str | None, error: FoveaError) -> None:
        super().__init__(others, method, given)
        self._error = error

    async def stream_stream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        del requests
        await self._settle(context, self._refuse())

    async def _refuse(self) -> None:
        raise self._error


class _NoSuchMethod(FoveaError):
    code = "unknown_method"


async def _nothing() -> None:
    """The answer of a method that is not there, which nobody asks for."""
