"""What a slice says over Socket.IO, understood: websocket messages in, events and answers out.

This is the client's side of Engine.IO 4 with Socket.IO 5 on top, for the namespace `/`. The codecs of python-engineio
and python-socketio take each packet apart and so prove that it is well formed; what goes on to the browser is the
payload's own JSON text, cut out of the packet and never encoded anew, except where binary attachments must find their
place in it. There is no socket and no clock in here: the caller carries the messages and keeps `heartbeat_within`.
"""

import json
from base64 import b64encode
from enum import Enum
from typing import Final, NamedTuple, NoReturn

from engineio import packet as engine
from socketio import packet as socket

from queunir_trio.errors import Lost, Refused

PATH: Final = "/socket.io/?EIO=4&transport=websocket"
FRAME_AT_MOST: Final = 2**20  # bytes of one websocket message
EVENT_AT_MOST: Final = 4 * 2**20  # bytes of one event with its attachments
ATTACHMENTS_AT_MOST: Final = 256  # of one event; a count costs the sender nothing, so bytes alone would not limit it
HEARTBEAT_AT_MOST: Final = 120.0  # seconds; a slice that asks for more would be noticed too late
REASON_AT_MOST: Final = 200  # characters of a refusal that are worth repeating

_BLANK: Final = " \t\r\n"


class ConversationBroken(Lost):
    """The other side ended the conversation, or does not speak the protocol: only a new connection can help."""


class Event(NamedTuple):
    """Something the slice told: its name, and its payload as JSON in UTF-8, `null` where it has none."""

    name: str
    payload: bytes


class Phase(Enum):
    """How far the conversation has come."""

    OPENING = "opening"  # nothing heard yet
    CONNECTING = "connecting"  # Engine.IO is open, the namespace has been asked for
    CONNECTED = "connected"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


class _StrictJson:
    """JSON as a browser reads it: without NaN and Infinity, which Python's parser would let through."""

    loads = staticmethod(_DECODER.decode)
    dumps = staticmethod(json.dumps)


class _SocketPacket(socket.Packet):  # type: ignore[misc]
    json = _StrictJson


class Conversation:
    """One connection's conversation, from the first message to the first fault."""

    def __init__(self, *, frame_at_most: int = FRAME_AT_MOST, event_at_most: int = EVENT_AT_MOST) -> None:
        self.phase = Phase.OPENING
        self.heartbeat_within = HEARTBEAT_AT_MOST  # seconds in which the slice must be heard; its own word once open
        self._frame_at_most = frame_at_most
        self._event_at_most = event_at_most
        self._outgoing: list[str] = []
        self._incomplete: _SocketPacket | None = None  # a packet whose attachments are still to come
        self._incomplete_size = 0

    def __repr__(self) -> str:
        return f"<Conversation {self.phase.value}{', awaiting attachments' if self._incomplete else ''}>"

    @property
    def connected(self) -> bool:
        return self.phase is Phase.CONNECTED

    def outgoing(self) -> list[str]:
        """The messages to send now, oldest first; they are handed out once."""
        messages = self._outgoing
        if messages:
            self._outgoing = []
        return messages

    def receive(self, message: str | bytes) -> Event | None:
        """Takes one whole websocket message; gives the event that it completed.

        ConversationBroken: the slice said goodbye or nonsense, or too much. Refused `slice_refused`: it will not
        have us. After either the conversation is over.
        """
        try:
            self._check_size(message)
            return self._take(message)
        except (ValueError, TypeError, LookupError, RecursionError) as fault:
            raise ConversationBroken(f"what the slice sent can not be read ({type(fault).__name__})") from None

    def _check_size(self, message: str | bytes) -> None:
        limit = self._frame_at_most
        if isinstance(message, bytes):
            size = len(message)
        elif len(message) * 4 <= limit:  # no character takes more than four bytes
            return
        else:
            size = len(message.encode())
        if size > limit:
            raise ConversationBroken(f"a message of {size} bytes is over the limit of {limit}")

    def _take(self, message: str | bytes) -> Event | None:
        packet = engine.Packet(encoded_packet=message)
        kind = packet.packet_type
        if kind == engine.MESSAGE:
            if self.phase is Phase.OPENING:
                raise ConversationBroken("the slice spoke before it opened the conversation")
            return self._take_binary(packet.data) if packet.binary else self._take_text(packet.data)
        if kind == engine.PING:
            self._outgoing.append(engine.Packet(engine.PONG, packet.data or None).encode())
        elif kind == engine.OPEN:
            self._open(packet.data)
        elif kind == engine.CLOSE:
            raise ConversationBroken("the slice closed the conversation")
        elif kind not in (engine.PONG, engine.NOOP):
            raise ConversationBroken("the slice sent a packet that has no place here")
        return None

    def _open(self, handshake: object) -> None:
        if self.phase is not Phase.OPENING or not isinstance(handshake, dict):
            raise ConversationBroken("the slice did not open the conversation as it should")
        interval, patience = handshake["pingInterval"], handshake["pingTimeout"]
        if not (_is_duration(interval) and _is_duration(patience)):
            raise ConversationBroken("the slice named no time in which to hear from it")
        self.heartbeat_within = min((interval + patience) / 1000, HEARTBEAT_AT_MOST)
        self.phase = Phase.CONNECTING
        self._say(_SocketPacket(socket.CONNECT))

    def _say(self, packet: _SocketPacket) -> None:
        self._outgoing.append(engine.Packet(engine.MESSAGE, packet.encode()).encode())

    def _take_text(self, text: object) -> Event | None:
        if not isinstance(text, str) or self._incomplete is not None:
            raise ConversationBroken("the slice sent something else where an attachment was due")
        packet = _SocketPacket(encoded_packet=text)
        kind = packet.packet_type
        if kind in (socket.BINARY_EVENT, socket.BINARY_ACK):
            return self._begin_binary(packet, len(text))
        if packet.attachment_count:
            raise ConversationBroken("the slice announced attachments to a packet that has none")
        if packet.namespace not in (None, "/"):
            return None  # a conversation that we are not part of
        if kind == socket.EVENT:
            name = _name_of(packet)
            self._acknowledge(packet)
            return Event(name, _own_text(packet, text, name).encode())
        self._control(kind, packet.data)
        return None

    def _control(self, kind: int, data: object) -> None:
        if kind == socket.CONNECT:
            self.phase = Phase.CONNECTED
        elif kind == socket.CONNECT_ERROR:
            raise Refused("slice_refused", f"The slice refused the conversation: {_reason_in(data)}")
        elif kind == socket.DISCONNECT:
            raise ConversationBroken("the slice ended the conversation")
        elif kind != socket.ACK:  # an answer to nothing we asked is passed over
            raise ConversationBroken("the slice sent a packet of an unknown kind")

    def _acknowledge(self, packet: _SocketPacket) -> None:
        if packet.id is not None:
            self._say(_SocketPacket(socket.ACK, data=[], id=packet.id))

    def _begin_binary(self, packet: _SocketPacket, size: int) -> Event | None:
        if not 0 < packet.attachment_count <= ATTACHMENTS_AT_MOST:
            raise ConversationBroken(f"an event with {packet.attachment_count} attachments")
        if packet.packet_type == socket.BINARY_EVENT:
            _name_of(packet)
        self._incomplete, self._incomplete_size = packet, size
        return None

    def _take_binary(self, attachment: bytes) -> Event | None:
        packet = self._incomplete
        if packet is None:
            raise ConversationBroken("the slice sent an attachment that belongs to nothing")
        self._incomplete_size += len(attachment)
        if self._incomplete_size > self._event_at_most:
            raise ConversationBroken(f"an event is over the limit of {self._event_at_most} bytes")
        if not packet.add_attachment(b64encode(attachment).decode()):
            return None
        self._incomplete = None
        if packet.packet_type != socket.BINARY_EVENT or packet.namespace not in (None, "/"):
            return None
        name = _name_of(packet)
        self._acknowledge(packet)
        arguments = packet.data[1:]
        payload = arguments[0] if len(arguments) == 1 else arguments or None
        return Event(name, json.dumps(payload, separators=(",", ":"), allow_nan=False).encode())


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _name_of(packet: _SocketPacket) -> str:
    data = packet.data
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ConversationBroken("the slice sent an event without a name")
    return data[0]


def _own_text(packet: _SocketPacket, text: str, name: str) -> str:
    """The JSON text of what follows an event's name in its packet; several arguments become one list.

    `text` has been parsed before, so what is looked for is there.
    """
    arguments = len(packet.data) - 1
    if arguments == 0:
        return "null"
    begin = text.index(",") if packet.namespace else 0  # a namespace may hold any character but a comma
    start = text.index("[", begin) + 1
    end = start + len(name) + 2
    if text[start:end] != f'"{name}"':  # blanks before it, or a name with escapes in it
        start = text.index('"', start)
        _, end = _DECODER.raw_decode(text, start)
    inner = text[text.index(",", end) + 1 :].rstrip(_BLANK)[:-1].strip(_BLANK)
    return inner if arguments == 1 else f"[{inner}]"


def _reason_in(data: object) -> str:
    message = data.get("message") if isinstance(data, dict) else data
    if not isinstance(message, str) or not message.isprintable():
        return "it gave no reason."
    return message[:REASON_AT_MOST]
