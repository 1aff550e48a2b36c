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


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: It cannot.
    """
    return socket.create_server((host, port), family=family(host), backlog=BACKLOG)


def listening_for_grpc(host: str, port: int) -> socket.socket:
    """As `listening`; the error says which option chooses another address."""
    try:
        return listening(host, port)
    except OSError as error:
        where = address(host, port)
        raise OSError(f"gRPC cannot listen on {where} (--grpc-port chooses another): {error}") from error
