"""The line to one slice: opened, brought up to date, and followed until it breaks."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final, Protocol

import structlog
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.live.slice_channel import SliceChannel, StateReport
from queunir_trio.model.routing import SliceAddress
from queunir_trio.outside.slice_socket import SliceSocket, open_slice_socket
from queunir_trio.wire.conversation import FRAME_AT_MOST, PATH, Conversation, ConversationBroken, Event

log = structlog.get_logger()

CONNECTED_WITHIN: Final = 10.0  # seconds for the conversation to begin, once the websocket is open

FindAddress = Callable[[int], Awaitable[SliceAddress | None]]


class Control(Protocol):
    """What a connector asks a slice beside the live line."""

    async def health(self, address: SliceAddress) -> object: ...
    async def state(self, address: SliceAddress) -> StateReport: ...


class Gone(Refused):
    """The slice has no address any more."""

    def __init__(self) -> None:
        super().__init__("no_such_slice", "The slice is gone.")


class SliceMoved(Lost):
    """The slice's address changed."""


class Connector:
    """Follows one slice. `connecting` limits how many connectors are being opened at once, so that a restart of the
    gateway is no stampede.
    """

    def __init__(
        self, channel: SliceChannel, find_address: FindAddress, control: Control, connecting: trio.CapacityLimiter
    ) -> None:
        self.channel = channel
        self.address: SliceAddress | None = None
        self._find_address = find_address
        self._control = control
        self._connecting = connecting
        self._scope: trio.CancelScope | None = None

    def __repr__(self) -> str:
        return f"<Connector {self.address or self.channel.slice_id}, {self.channel.connector}>"

    async def session(self) -> None:
        """One connection from its first to its last moment; ends only by an exception.

        Lost, OSError: it broke or could not be opened; try again. Refused: the slice will not have us, or is gone.
        """
        self.channel.connecting()
        try:
            address = await self._found()
            with trio.CancelScope() as self._scope:
                await self._follow(address)
            raise SliceMoved(f"{address!r} is somewhere else now")
        except Refused:
            self.channel.refused()
            raise
        except Exception:
            self.channel.lost()
            raise

    async def look_again(self) -> None:
        """Starts the session anew if the slice's address is not what it was when the session began."""
        before = self.address
        if before is not None and await self._find_address(self.channel.slice_id) != before and self._scope:
            self._scope.cancel()

    async def _found(self) -> SliceAddress:
        """The address as the table has it; as it last was where the table can not be asked."""
        try:
            self.address = await self._find_address(self.channel.slice_id)
        except Lost:
            if self.address is None:
                raise
        if self.address is None:
            raise Gone
        return self.address

    async def _follow(self, address: SliceAddress) -> None:
        async with AsyncExitStack() as opened:
            async with self._connecting:
                if address.proves_identity:
                    await self._control.health(address)
                socket = await opened.enter_async_context(
                    open_slice_socket(address, PATH, message_at_most=FRAME_AT_MOST)
                )
                conversation = Conversation()
                early = await self._begin(socket, conversation)
                # asked only now that events come in: what changes after the answer is told by an event behind it
                self.channel.resync(await self._control.state(address))
            log.info("connector_open", slice_id=address.slice_id)
            for event in early:
                self.channel.publish(*event)
            await self._listen(socket, conversation)

    async def _begin(self, socket: SliceSocket, conversation: Conversation) -> list[Event]:
        """Brings the conversation to where events come; gives those that came before."""
        early = []
        with trio.move_on_after(CONNECTED_WITHIN):
            while True:
                event = await _next(socket, conversation)
                if event is not None:
                    early.append(event)
                if conversation.connected:
                    return early
        raise ConversationBroken("the slice did not begin the conversation in time")

    async def _listen(self, socket: SliceSocket, conversation: Conversation) -> None:
        """Publishes what comes. Any message counts as a sign of life; without one in time the slice is lost."""
        publish = self.channel.publish
        with trio.CancelScope() as heard:
            while True:
                heard.deadline = trio.current_time() + conversation.heartbeat_within
                event = await _next(socket, conversation)
                if event is not None:
                    publish(event.name, event.payload)
        raise ConversationBroken("the slice has not been heard in time")


async def _next(socket: SliceSocket, conversation: Conversation) -> Event | None:
    """One message, understood and answered. Waiting for it lets others run, however many there are."""
    event = conversation.receive(await socket.receive())
    for answer in conversation.outgoing():
        await socket.send(answer)
    return event
