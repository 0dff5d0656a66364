"""The simulated phone and the people who write to it: the same seed always tells the same story."""

import asyncio
import base64
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from queunir_slice.engine import Ack, Acked, Attachment, Outgoing, Received
from queunir_slice.simulator_agenda import Agenda

# all in seconds, at the speed of life
ACKS: Final = ((Ack.SENT, 0.3), (Ack.DELIVERED, 0.8), (Ack.READ, 1.6))  # after a message was taken
ANSWERS_AFTER: Final = (1.0, 3.0)  # from the moment a message was read, at least and at most

FLOOD_SENDERS: Final = 20
_PIECE: Final = 2**16  # bytes of a made-up file
_CODE_PARTS: Final = (32, 33, 33, 32)  # bytes in each part of a code, which makes it as long as a real one
_FIRST_NAMES: Final = ("Ana", "Bruno", "Carla", "Diego", "Elena", "Fabio", "Greta", "Hugo", "Irene", "Jonas", "Lucia")
_LAST_NAMES: Final = ("Costa", "Duarte", "Ferrer", "Gil", "Ibarra", "Lima", "Moreno", "Neves", "Ortega", "Prado")
_ANSWERS: Final = (
    "Thanks, that helps a lot.",
    "Great! When could you deliver it?",
    "How much would it be for two?",
    "Let me ask at home and I will tell you.",
    "Perfect, see you then 👍",
    "Could you send me a photo?",
    "Sorry, I was driving. Yes, please.",
    "Not today, but write to me next week.",
)

Tell = Callable[[Received | Acked], Awaitable[None]]


class Phone:
    """A paired phone with everybody who can be reached from it; chance comes from the seed alone."""

    def __init__(self, seed: str, speed: float, agenda: Agenda, tell: Tell) -> None:
        self._seed = seed
        self._speed = speed
        self._agenda = agenda
        self._tell = tell
        self._random = random.Random(seed)
        self.number = _number(self._random)

    def code(self) -> str:
        """The text of a new QR code."""
        parts = (base64.b64encode(self._random.randbytes(size)).decode() for size in _CODE_PARTS)
        return "2@" + ",".join(parts)

    def deliver(self, message: Outgoing) -> None:
        """Sends a message on its way: it is acked step by step, and somebody answers."""
        for ack, after in ACKS:
            self._later(after, Acked(message.wa_id, ack))
        thought = ACKS[-1][1] + self._random.uniform(*ANSWERS_AFTER)
        self.receive(message.chat_wa_id, self._random.choice(_ANSWERS), thought)

    def receive(self, chat_wa_id: str, body: str, after: float = 0.0, attachment: Attachment | None = None) -> None:
        """Somebody writes, in so many seconds."""
        # made when it happens, so that its time is the time it arrives
        self._agenda.add(self._at(after), lambda: self._tell(self._message(chat_wa_id, body, attachment)))

    def flood(self, count: int, per_second: float) -> None:
        """`count` messages arrive, `per_second` of them in each second of the clock."""
        self._flood_on(asyncio.get_running_loop().time(), 1, count, 1 / per_second)

    def name_of(self, wa_id: str) -> str:
        """The name somebody goes by; it depends on the seed and the id alone, not on what was asked before."""
        chance = random.Random(f"{self._seed} {wa_id}")
        return f"{chance.choice(_FIRST_NAMES)} {chance.choice(_LAST_NAMES)}"

    def _flood_on(self, due: float, number: int, count: int, interval: float) -> None:
        """One deed at a time, however long the flood: each adds the next."""

        async def arrive() -> None:
            if number < count:
                self._flood_on(due + interval, number + 1, count, interval)
            sender = f"1555{number % FLOOD_SENDERS:07d}@c.us"
            await self._tell(self._message(sender, f"flood {number} of {count}"))

        self._agenda.add(due, arrive)

    def _later(self, seconds: float, event: Acked) -> None:
        self._agenda.add(self._at(seconds), lambda: self._tell(event))

    def _at(self, seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds / self._speed

    def _message(self, chat_wa_id: str, body: str, attachment: Attachment | None = None) -> Received:
        sender = self._member_of(chat_wa_id) if chat_wa_id.endswith("@g.us") else chat_wa_id
        return Received(
            # not drawn from the seed: an id must never come again, and the seed does after every restart
            wa_id=f"false_{chat_wa_id}_{secrets.token_hex(10).upper()}",
            chat_wa_id=chat_wa_id,
            from_wa_id=sender,
            push_name=self.name_of(sender),
            body=body,
            timestamp=datetime.now(UTC),
            attachment=attachment,
        )

    def _member_of(self, group_wa_id: str) -> str:
        return f"{_number(random.Random(f'{self._seed} {group_wa_id}'))}@c.us"


def attachment(mime_type: str, size: int) -> Attachment:
    """A made-up file of so many bytes, made as it is read."""

    def chunks() -> Iterator[bytes]:
        piece = random.Random(size).randbytes(min(size, _PIECE))
        for begun in range(0, size, _PIECE):
            yield piece[: size - begun]

    return Attachment(mime_type, f"file.{mime_type.rpartition('/')[2]}", size, chunks)


def _number(chance: random.Random) -> str:
    """A telephone number that nobody has."""
    return f"1555{chance.randrange(10**7):07d}"
