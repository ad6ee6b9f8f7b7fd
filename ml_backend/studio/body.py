"""The body of an answer, of bounded size: answers may be endless, or packed to a thousandth."""

from __future__ import annotations

import httpx

from ml_backend.studio.failures import StudioError

__all__ = ["ENCODINGS", "MOST_BYTES", "BodyTooLarge", "read_body"]

MOST_BYTES = 256 << 20
"""Of an image's file: 10,000² pixels of 16 bits are 200 MB."""
ENCODINGS = "gzip, deflate, identity"
"""What to ask for (Accept-Encoding). Of these, a piece of 64 KiB unpacks to at most 66 MB; of
others, which httpx unpacks where it finds their libraries, to any number."""


class BodyTooLarge(StudioError):
    """An answer has more bytes than are read, or says so, or is packed in a way that hides it."""


def read_body(answer: httpx.Response, most_bytes: int = MOST_BYTES) -> bytes:
    """The body of a streamed ``answer``, unpacked.

    Raises BodyTooLarge, before more than ``most_bytes`` are kept, and what httpx raises when the
    connection ends.
    """
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ENCODINGS.split(", "):
        raise BodyTooLarge(f"it is packed as {coding[:60]!r}, expected {ENCODINGS}")
    said = answer.headers.get("Content-Length", "")
    if said.isdecimal() and int(said) > most_bytes:
        raise BodyTooLarge(f"it has {said} bytes, at most {most_bytes} are read")
    body = bytearray()
    for piece in answer.iter_bytes():
        if len(body) + len(piece) > most_bytes:
            raise BodyTooLarge(f"it has more than the {most_bytes} bytes that are read")
        body += piece
    return bytes(body)
