"""google.rpc.Status by hand: its few fields are stable, and the package that has it is not worth its import here.

Field numbers: https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto and error_details.proto.
"""

from collections.abc import Iterator, Mapping

_ERROR_INFO = b"type.googleapis.com/google.rpc.ErrorInfo"
_RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"
_VARINT = 0
_BYTES = 2
_LONGEST_DELAY = 300.0
_NOTHING: Mapping[str, str] = {}


def encode_status(code: int, message: str, reason: str, domain: str, metadata: Mapping[str, str] = _NOTHING) -> bytes:
    """Return a Status with one ErrorInfo."""
    info = _field(1, reason.encode()) + _field(2, domain.encode())
    for key, value in metadata.items():
        info += _field(3, _field(1, key.encode()) + _field(2, value.encode()))
    detail = _field(1, _ERROR_INFO) + _field(2, info)
    return _varint(1 << 3 | _VARINT) + _varint(code) + _field(2, message.encode()) + _field(3, detail)


def retry_delay(status: str | bytes | None) -> float:
    """Return the seconds a Status's RetryInfo asks to wait, at most five minutes; 0 without one."""
    if not isinstance(status, bytes):
        return 0.0
    try:
        for number, detail in _fields(status):
            parts = dict(_fields(detail)) if number == 3 and isinstance(detail, bytes) else {}
            if parts.get(1) == _RETRY_INFO:
                return min(_duration(parts.get(2, b"")), _LONGEST_DELAY)
    except (IndexError, ValueError):
        return 0.0  # Not a Status.
    return 0.0


def _duration(retry_info: bytes | int) -> float:
    delay = dict(_fields(retry_info)).get(1, b"") if isinstance(retry_info, bytes) else b""
    parts = dict(_fields(delay)) if isinstance(delay, bytes) else {}
    seconds, nanos = parts.get(1, 0), parts.get(2, 0)
    return seconds + nanos / 1e9 if isinstance(seconds, int) and isinstance(nanos, int) else 0.0


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        value, position = _read_varint(message, position)
        if key & 7 == _VARINT:
            yield key >> 3, value
        elif key & 7 == _BYTES:
            yield key >> 3, message[position : position + value]
            position += value
        else:
            raise ValueError("a wire type that no Status has")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
