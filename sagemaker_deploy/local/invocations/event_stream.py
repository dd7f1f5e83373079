"""AWS's event-stream frames, as InvokeEndpointWithResponseStream sends them.

Wire format: "Event Stream Encoding" of Amazon Transcribe's developer guide and botocore's parser
`botocore.eventstream`: lengths, CRC32 of the lengths, headers, payload, CRC32 of all before.
Knows bytes only.
"""

import binascii
import json
import struct
from collections.abc import Mapping

CONTENT_TYPE = "application/vnd.amazon.eventstream"
_STRING = 7  # the header type "string": a 16-bit length and UTF-8


def payload_part(data: bytes) -> bytes:
    """Frame a piece of the container's response."""
    headers = {
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
        ":message-type": "event",
    }
    return frame(headers, data)


def stream_error(code: str, message: str) -> bytes:
    """Frame a ModelStreamError: `code` is ModelInvocationTimeExceeded or StreamBroken."""
    headers = {
        ":exception-type": "ModelStreamError",
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return frame(headers, json.dumps({"Message": message, "ErrorCode": code}).encode())


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Encode one frame."""
    head = b"".join(_header(name, value) for name, value in headers.items())
    lengths = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    body = lengths + struct.pack("!I", binascii.crc32(lengths)) + head + payload
    return body + struct.pack("!I", binascii.crc32(body))


def _header(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return struct.pack("!B", len(key)) + key + struct.pack("!BH", _STRING, len(text)) + text
