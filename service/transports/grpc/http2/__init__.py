"""The server's side of HTTP/2 (RFC 9113), as much of it as gRPC uses, without sockets and without asyncio."""
