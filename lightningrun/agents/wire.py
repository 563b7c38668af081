"""Messages between runner, fork server and slots: four bytes of length, then JSON."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

HEADER = struct.Struct("!I")


def frame(message: Any) -> bytes:
    """A message as bytes. Raises TypeError or ValueError for what JSON cannot hold."""
    return frame_text(json.dumps(message, separators=(",", ":")))


def frame_text(text: str) -> bytes:
    body = text.encode("ascii")
    return HEADER.pack(len(body)) + body


def receive(sock: socket.socket) -> Any:
    """The next message of a blocking socket, or None at its end."""
    header = _exactly(sock, HEADER.size)
    body = _exactly(sock, HEADER.unpack(header)[0]) if header else None
    return None if body is None else json.loads(body)


def receive_with_descriptor(sock: socket.socket) -> tuple[Any, int | None]:
    """The next message and the file descriptor that came with it, if any; ``(None, None)`` at the end."""
    head, descriptors, _, _ = socket.recv_fds(sock, HEADER.size, 1)
    rest = _exactly(sock, HEADER.size - len(head)) if head else None
    if rest is None:
        return None, None
    body = _exactly(sock, HEADER.unpack(head + rest)[0])
    return (None, None) if body is None else (json.loads(body), descriptors[0] if descriptors else None)


def unpack(buffer: bytearray) -> list[Any]:
    """Take the whole messages off the front of ``buffer``."""
    messages: list[Any] = []
    while len(buffer) >= HEADER.size:
        end = HEADER.size + HEADER.unpack_from(buffer)[0]
        if len(buffer) < end:
            break
        messages.append(json.loads(bytes(buffer[HEADER.size : end])))
        del buffer[:end]
    return messages


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            return None
        data = data + chunk if data else chunk
    return data
