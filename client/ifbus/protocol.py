"""MessagePack-RPC without I/O: bytes in, events out; messages in, bytes out. Shared by daemon and clients.

The wire is the published one (https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md): request
``[0, msgid, method, params]``, response ``[1, msgid, error, result]``, notification ``[2, method, params]``, back to back.
``params`` is the positional list of the documented signature; one single map in it is taken as keyword arguments.

What a request says about itself (``timeout_ms``, ``idempotency_key``, ``traceparent``) travels in a map under the key
``"$"``, in the keyword map or in a trailing map of its own, so that clients which know nothing of it need not send it::

    [0, 7, "coordinator.claim_task", [{"task_id": "T-7", "swarm_id": "docs", "$": {"timeout_ms": 500}}]]
    [0, 7, "coordinator.claim_task", ["T-7", "docs", {"$": {"timeout_ms": 500}}]]

Rule of this file: no socket, clock, thread, callback or logger.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, Final, NamedTuple

import msgpack

from ifbus.errors import IfbusError, InvalidParams, InvalidRequest, LimitExceeded, ProtocolError
from ifbus.nesting import NestingScan, TooDeep, is_suspicious

PROTOCOL_VERSIONS: Final = (1,)
META_KEY: Final = "$"
CANCEL_METHOD: Final = "$/cancel"
MAX_MSGID: Final = 0xFFFF_FFFF
# One feed is at most this long and drained before the next: what msgpack allocates for one feed stays small (FACTS 4).
_FEED_BYTES: Final = 16 << 10
# Too short for more nested long arrays than a message may have anyway.
_UNSUSPICIOUS_BYTES: Final = 192

Params = list[Any]
Meta = dict[str, Any]


class Limits(NamedTuple):
    """What one side accepts from the other; a peer beyond any of them loses its connection.

    A named tuple, because attrs costs every one-shot command 25 ms to import.

    Attributes:
        message_bytes: One message. 64 KiB, because 64 KiB of empty maps already cost 3.7 ms to decode (FACTS 4).
        nesting: Containers inside one another, the message itself being the first.
        array_items, map_items: Declared lengths, refused before the elements arrive: msgpack allocates for them at once.
        string_bytes: One string or binary.
    """

    message_bytes: int = 64 << 10
    nesting: int = 32
    array_items: int = 4096
    map_items: int = 512
    string_bytes: int = 64 << 10


class Request(NamedTuple):
    """The peer asks; answer with `Connection.respond` or `respond_error` under the same id."""

    msgid: int
    method: str
    params: Params
    meta: Meta


class Response(NamedTuple):
    """The peer answers request `msgid`: `error` is None or the wire's error map."""

    msgid: int
    error: Any
    result: Any


class Notification(NamedTuple):
    """The peer tells; nothing is answered."""

    method: str
    params: Params


class Malformed(NamedTuple):
    """Good MessagePack, bad message: answer `error` if there is a `msgid`; the stream goes on."""

    msgid: int | None
    error: IfbusError


class Signal(enum.Enum):
    """Events without content."""

    NEED_DATA = "need data"
    END_OF_STREAM = "end of stream"


NEED_DATA: Final = Signal.NEED_DATA
END_OF_STREAM: Final = Signal.END_OF_STREAM

Event = Request | Response | Notification | Malformed | Signal


_KINDS: Final = "the first element is 0 (request), 1 (response) or 2 (notification)"


class Connection:
    """One MessagePack-RPC stream, either side.

    The shell reads bytes into `receive_data`, drains `next_event` until `NEED_DATA`, and writes what `request`,
    `respond`, `respond_error`, `notify` and `cancel` return, whole and in order. Not thread-safe: one owner, or a lock.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen, so one default serves all
        self._limits = limits
        self._message_bytes = limits.message_bytes
        self._nesting = limits.nesting
        self._unpacker: msgpack.Unpacker | None = msgpack.Unpacker(
            max_buffer_size=limits.message_bytes + _FEED_BYTES,
            read_size=4096,  # the default reserves 1 MiB of address space per connection
            max_str_len=limits.string_bytes,
            max_bin_len=limits.string_bytes,
            max_array_len=limits.array_items,
            max_map_len=limits.map_items,
            max_ext_len=0,  # extension types, timestamps among them, have no meaning here
            strict_map_key=True,
            raw=False,
        )
        self._packer = msgpack.Packer(use_bin_type=True, autoreset=True)
        self._waiting: deque[memoryview | bytes] = deque()
        self._scan: NestingScan | None = None  # of the unfinished message, where it was looked at already
        self._last_fed: memoryview | bytes = b""
        self._fed = 0  # bytes given to the unpacker so far
        self._drained = 0  # bytes of the messages taken out of it so far
        self._eof = False
        self._failed: str | None = None  # why; no exception, which would hold all that its traceback sees
        self._next_msgid = 0

    # --- receiving -----------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Buffer what was read; ``b""`` means that the peer has closed its side.

        The caller drains `next_event` until `NEED_DATA` before it reads again, so no more than one read is buffered.
        """
        if not data:
            self._eof = True
        elif len(data) <= _FEED_BYTES:
            self._waiting.append(data)
        else:
            view = memoryview(data)
            self._waiting.extend(view[start : start + _FEED_BYTES] for start in range(0, len(data), _FEED_BYTES))

    def next_event(self) -> Event:
        """The next message, `NEED_DATA`, or `END_OF_STREAM` once the peer has closed and all was delivered.

        Good messages before a bad byte are delivered before the error.

        Raises:
            ProtocolError: The bytes are no MessagePack, beyond a limit, or end inside a message. From then on every call
                raises it: close the connection. Any other exception is a bug.
        """
        if self._failed is not None:
            raise _unreadable(self._failed)
        unpacker = self._unpacker
        assert unpacker is not None  # dropped only together with `_failed`
        while True:
            if (
                self._fed == self._drained
            ):  # an empty unpacker says so with an exception, which costs as much as a message
                if not self._waiting:
                    self._last_fed = b""  # an idle connection holds no data
                    return END_OF_STREAM if self._eof else NEED_DATA
                data = self._waiting.popleft()
                if len(data) <= _UNSUSPICIOUS_BYTES:  # the usual case, as `_feed` would do it
                    self._last_fed = data
                    unpacker.feed(data)
                    self._fed += len(data)
                else:
                    self._feed(unpacker, data)
            try:
                message = unpacker.unpack()
            except msgpack.OutOfData:
                # The unpacker lets go of bytes that it has read, so its buffer never fills with a message of many small
                # values: these would grow without end.
                if self._fed - self._drained > self._message_bytes:
                    raise self._fail(f"a message of more than {self._message_bytes} bytes") from None
                if self._waiting:
                    self._feed(unpacker, self._waiting.popleft())
                    continue
                if not self._eof:
                    return NEED_DATA
                raise self._fail("the stream ended inside a message") from None
            except (
                Exception
            ) as error:  # msgpack raises ValueError, StackError, FormatError, BufferFull, UnicodeDecodeError, ...
                raise self._fail(f"no MessagePack within the limits: {type(error).__name__} {error}"[:200]) from error
            end = unpacker.tell()
            if end - self._drained > self._message_bytes:
                raise self._fail(f"a message of {end - self._drained} bytes, at most {self._message_bytes} are taken")
            self._drained = end
            # Told here, as it is what nearly every message to a client is: a call for each would be a tenth of its time.
            if type(message) is list and len(message) == 4:
                kind, msgid, refusal, result = message
                if kind == 1 and type(kind) is int and type(msgid) is int and 0 <= msgid <= MAX_MSGID:
                    return Response(msgid, refusal, result)
            return self._interpret(message)

    @property
    def is_inside_message(self) -> bool:
        """Whether the first bytes of a message have arrived and its last ones not; a shell puts a deadline on it."""
        return self._fed != self._drained

    @property
    def has_buffered(self) -> bool:
        """Whether more bytes were received than the messages delivered so far consist of."""
        return self._fed != self._drained or bool(self._waiting)

    def _feed(self, unpacker: msgpack.Unpacker, data: memoryview | bytes) -> None:
        if self._fed != self._drained or len(data) > _UNSUSPICIOUS_BYTES:
            good = self._scan_nesting(data)
            if not good:
                raise self._fail(f"containers are nested more than {2 * self._nesting} deep")
            if good < len(data):  # good messages are delivered before a bad one
                self._waiting.appendleft(data[good:])
                data = data[:good]
        self._last_fed = data
        try:
            unpacker.feed(data)
        except Exception as error:  # BufferFull: one message is longer than the buffer
            raise self._fail(f"a message of more than {self._message_bytes} bytes") from error
        self._fed += len(data)

    def _scan_nesting(self, data: memoryview | bytes) -> int:
        """How many bytes of `data` may be decoded: all, or those before a message that is nested too deep."""
        limit = 2 * self._nesting  # answers carry what requests brought, a few levels deeper
        unfinished, at = self._fed - self._drained, 0
        try:
            if unfinished:
                if self._scan is None:
                    self._scan = NestingScan(limit)
                    self._scan.feed(self._last_fed[-unfinished:])
                end = self._scan.feed(data)
                if end is None:
                    return len(data)
                at = end
            self._scan = None
            if is_suspicious(data[at:]):
                while at < len(data):
                    self._scan = NestingScan(limit)
                    end = self._scan.feed(data[at:])
                    if end is None:
                        return len(data)
                    at += end
                    self._scan = None
        except TooDeep:
            self._scan = None
            return at
        return len(data)

    def _fail(self, reason: str) -> ProtocolError:
        # The unpacker is never touched again after an exception (CVE-2026-57585), so drop it.
        self._failed = reason
        self._unpacker = None
        self._waiting.clear()
        return _unreadable(reason)

    def _interpret(self, message: Any) -> Event:
        if type(message) is not list or not message:
            return _malformed(None, "a message is an array", message)
        kind = message[0]
        if type(kind) is not int:
            return _malformed(None, _KINDS, message)
        if kind == 0:
            return self._interpret_request(message)
        if kind == 1:
            return _malformed(None, "a response is [1, msgid, error, result]", message)
        if kind == 2:
            if len(message) != 3 or type(message[1]) is not str or type(message[2]) is not list:
                return _malformed(None, "a notification is [2, method, params]", message)
            if self._is_too_deep(message[2]):
                return _malformed(None, f"params are nested at most {self._nesting} deep", message)
            return Notification(message[1], message[2])
        return _malformed(None, _KINDS, message)

    def _interpret_request(self, message: list[Any]) -> Event:
        if len(message) != 4:
            return _malformed(_msgid_of(message), "a request is [0, msgid, method, params]", message)
        _, msgid, method, params = message
        if not _is_msgid(msgid):
            return _malformed(None, "a request's id is an integer of 32 bits", msgid)
        if type(method) is not str:
            return _malformed(msgid, "a request's method is a string", method)
        if type(params) is not list:
            return _malformed(
                msgid, "a request's params are an array; parameters by name are one map in it, as [{...}]", params
            )
        if not params:
            return Request(msgid, method, params, {})
        if self._is_too_deep(params):
            return _malformed(msgid, f"params are nested at most {self._nesting} deep", params)
        meta: Any = None
        last = params[-1]
        # In a positional list only a map of its own: the last parameter may be a map with any keys.
        if type(last) is dict and META_KEY in last and (len(params) == 1 or len(last) == 1):
            meta = last.pop(META_KEY)
            if type(meta) is not dict:
                return _malformed(msgid, f'"{META_KEY}" is a map', meta)
            if not last:
                params.pop()
        return Request(msgid, method, params, meta or {})

    def _is_too_deep(self, params: list[Any]) -> bool:
        level, depth = [item for item in params if type(item) is dict or type(item) is list], 2
        while level:
            depth += 1
            if depth > self._nesting:
                return True
            level = [
                item
                for container in level
                for item in (container.values() if type(container) is dict else container)
                if type(item) is dict or type(item) is list
            ]
        return False

    # --- sending -------------------------------------------------------------------------------------

    def request(self, method: str, params: Params, meta: Meta | None = None) -> tuple[int, bytes]:
        """The id and the bytes of a request.

        Args:
            params: Positional values, or one map of keyword arguments in a list of its own.
            meta: What the request says of itself, if anything; goes into a trailing map.

        Raises:
            LimitExceeded: The message is longer than the peer takes.
            InvalidParams: It has a value that MessagePack cannot carry.
        """
        if meta:
            if len(params) == 1 and type(params[0]) is dict:
                params = [{**params[0], META_KEY: meta}]
            else:
                params = [*params, {META_KEY: meta}]
        msgid = self._next_msgid
        self._next_msgid = (msgid + 1) & MAX_MSGID
        try:
            return msgid, self._pack([0, msgid, method, params])
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidParams(f"cannot send {method:.80}: {_unsendable(error)}", data={"param": "params"}) from error

    def respond(self, msgid: int, result: Any) -> bytes:
        """The bytes of a good answer.

        Raises:
            LimitExceeded: The answer is longer than a message may be; answer that error instead.
        """
        return self._pack([1, msgid, None, result])

    def respond_error(self, msgid: int, error: IfbusError) -> bytes:
        """The bytes of a refusal; figures that do not fit into a message are left out, code and sentence always fit."""
        wire = error.to_wire()
        try:
            return self._pack([1, msgid, wire, None])
        except (LimitExceeded, TypeError, ValueError, OverflowError):
            # A path in a message may hold bytes that are no UTF-8, as lone surrogates.
            message = error.message[:1000].encode("utf-8", "backslashreplace").decode()
            return self._pack([1, msgid, {"code": error.code, "message": message, "data": {}}, None])

    def notify(self, method: str, params: Params) -> bytes:
        """The bytes of a notification.

        Raises:
            LimitExceeded: It is longer than a message may be.
        """
        return self._pack([2, method, params])

    def cancel(self, msgid: int) -> bytes:
        """The bytes that give request `msgid` up; its response may still come."""
        return self._pack([2, CANCEL_METHOD, [msgid]])

    def _pack(self, message: list[Any]) -> bytes:
        data: bytes = self._packer.pack(message)
        if len(data) > self._message_bytes:
            raise LimitExceeded(
                f"cannot send a message of {len(data)} bytes: at most {self._message_bytes} are allowed",
                data={"limit": "message_bytes", "used": len(data), "allowed": self._message_bytes},
                would_change=[
                    {"by": "self", "what": "less at a time: a shorter value, or a smaller limit and then more"}
                ],
            )
        return data


def _unsendable(error: Exception) -> str:
    """What is wrong with a value that msgpack would not pack."""
    if isinstance(error, UnicodeError):
        return "a text is no UTF-8 (it has a lone surrogate, as other bytes become)"
    if isinstance(error, OverflowError):
        return "a whole number does not fit into 64 bits"
    return str(error)


def _unreadable(reason: str) -> ProtocolError:
    return ProtocolError(f"cannot read the stream: {reason}", data={"reason": reason})


def _is_msgid(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_MSGID


def _msgid_of(message: list[Any]) -> int | None:
    return message[1] if len(message) > 1 and _is_msgid(message[1]) else None


def _malformed(msgid: int | None, rule: str, offending: Any) -> Malformed:
    return Malformed(msgid, InvalidRequest(f"cannot read the request: {rule}, got {_shown(offending)}"))


def _shown(value: Any) -> str:
    # Never the text of a container: as long as the message, and 1000 levels of it end in RecursionError.
    if isinstance(value, (list, dict, bytes)):
        return f"{'an array' if type(value) is list else 'a map' if type(value) is dict else 'binary'} of {len(value)}"
    return repr(value[:80] if type(value) is str else value)
