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


def _listening(host: str, port: int, protocol: str, option: str) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address.
        port: 0 takes a free one.
        protocol: What is spoken there.
        option: Of the command line, that chooses another port.

    Raises:
        OSError: It cannot; the message says what to do.
    """
    try:
        return socket.create_server((host, port), family=family(host), backlog=BACKLOG)
    except OSError as error:
        where = address(host, port)
        raise OSError(f"{protocol} cannot listen on {where} ({option} chooses another): {error}") from error


def for_http(host: str, port: int) -> socket.socket:
    return _listening(host, port, "HTTP", "--port")


def for_grpc(host: str, port: int) -> socket.socket:
    return _listening(host, port, "gRPC", "--grpc-port")
