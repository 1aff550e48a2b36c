"""Addresses to listen on."""

from __future__ import annotations

import socket

BACKLOG = 2048


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address(host: str, port: int) -> str:
    """As host:port, with an IPv6 address in brackets."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def shown(scheme: str, host: str, port: int) -> str:
    """The address as people read it."""
    return f"{scheme}://{address(host, port)}"


def no_grpc(host: str, port: int, error: Exception) -> OSError:
    """What is said where gRPC cannot listen."""
    return OSError(f"gRPC cannot listen on {address(host, port)} (--grpc-port chooses another): {error}")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: It cannot.
    """
    return socket.create_server((host, port), family=family(host), backlog=BACKLOG)


def reserved(host: str, port: int) -> socket.socket:
    """A socket that takes an address without listening, for several processes to listen on it.

    Raises:
        OSError: Somebody else has it.
    """
    with listening(host, port) as alone:  # fails if anybody listens there
        port = alone.getsockname()[1]
    taken = socket.socket(family(host))
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    taken.bind((host, port))
    return taken
