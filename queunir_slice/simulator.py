"""A WhatsApp session without WhatsApp: the states, codes, acks and misfortunes of the real one, steerable.

Each state is a method that enters it, rests as long as it lasts, and returns the method of the state that follows.
An order from outside (scan, disconnect, log out, ...) ends the rest and names the state that follows instead.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from queunir_slice import engine
from queunir_slice.engine import NotConnected, NotPossible, Standing, State
from queunir_slice.simulator_agenda import Agenda
from queunir_slice.simulator_phone import Phone

# all in seconds, at the speed of life
STARTS_WITHIN: Final = 1.0
CODES_LAST: Final = (60.0, 20.0, 20.0, 20.0, 20.0, 20.0)
PAIRS_WITHIN: Final = 0.5
SYNC_STEPS: Final = (25, 50, 75, 100)  # percent
SYNC_STEP_LASTS: Final = 0.4
RECOVERS_WITHIN: Final = 4.0

ORDER_WITHIN: Final = 5.0  # seconds of the clock: how long the session has to follow an order
CODE_WITHIN: Final = 5.0  # seconds a scan waits for a code to be shown

_PAIRED: Final = frozenset({State.AUTHENTICATED, State.SYNCING, State.READY, State.DEGRADED})
_IDLE: Final = frozenset({State.STOPPED, State.LOGGED_OUT, State.FAILED})
_BEFORE_CODE: Final = _IDLE | {State.STARTING}

Step = Callable[[], Awaitable[Any]]  # returns the next Step


@dataclass(slots=True)
class _Order:
    """Go on with a step; `followed` when the session has entered and told it."""

    step: Step
    followed: asyncio.Event = field(default_factory=asyncio.Event)


class _Diverted(Exception):
    """An order came."""

    def __init__(self, order: _Order) -> None:
        super().__init__()
        self.order = order


class Simulator:
    """An engine whose phone, contacts and network are made up; `speed` 10 lives ten times as fast."""

    def __init__(self, seed: str, speed: float = 1.0) -> None:
        self.seed = seed
        self.speed = speed
        self.agenda = Agenda()
        self._phone = Phone(seed, speed, self.agenda, self._tell)
        self._paired = False
        self._destroyed = False
        self._standing = Standing(State.STARTING, None, datetime.now(UTC), None, None)
        self._hear: engine.Hear | None = None
        self._order: _Order | None = None  # given, not yet seen
        self._following: _Order | None = None  # seen, its state not yet entered
        self._stirred = asyncio.Event()
        self._one_order = asyncio.Lock()
        self._code_on_show = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()

    @property
    def standing(self) -> Standing:
        """How the session stands now."""
        return self._standing

    @property
    def frozen(self) -> bool:
        """Whether WhatsApp is silent although it seems connected."""
        return not self._thawed.is_set()

    # what the CRM asks --------------------------------------------------------------------------------------------

    async def run(self, remembered: engine.Remembered, hear: engine.Hear) -> None:
        """Lives until it is cancelled; tells `hear` everything that happens."""
        self._hear = hear
        self._paired = remembered.phone_number is not None
        self._phone.number = remembered.phone_number or self._phone.number
        self._order = self._following = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.agenda.run())
                tasks.create_task(self._live(self._first_step(remembered)))
        except ExceptionGroup as faults:
            broken = faults
        await self._enter(State.FAILED, "engine_error")
        raise broken

    async def send(self, message: engine.Outgoing) -> None:
        """Takes a message; its acks and an answer follow. In a freeze it waits, as a dead browser would."""
        await self._thawed.wait()
        if self._standing.state is not State.READY:
            raise NotConnected
        self._phone.deliver(message)

    async def log_out(self) -> None:
        """Ends the pairing from the CRM's side."""
        if not self._paired:
            raise NotConnected
        await self._give(lambda: self._logged_out("user"))

    async def destroy(self) -> None:
        """Stops the session for the rest of this process, a frozen one too."""
        self._destroyed = True
        self._thawed.set()
        await self._give(lambda: self._rest_as(State.STOPPED, "destroyed"))

    def ask_for_code(self) -> None:
        """Somebody is there: an idle session starts anew."""
        if self._standing.state in _IDLE and not self._destroyed and not self.frozen and self._order is None:
            self._order = _Order(self._starting)
            self._stirred.set()

    # what whoever steers it asks ------------------------------------------------------------------------------------

    async def scan(self) -> None:
        """A phone scans the code on show. One that comes early waits a moment for it, as a person would."""
        self.ask_for_code()
        if not self._paired and not self.frozen and self._standing.state in _BEFORE_CODE:
            try:
                async with asyncio.timeout(CODE_WITHIN):
                    await self._code_on_show.wait()
            except TimeoutError:
                pass  # refused below, with the sentence that says why
        await self._give(self._authenticated, frozenset({State.QR}), "No code is on show: nothing can be scanned.")

    async def disconnect(self, reason: str) -> None:
        """The network goes, and comes back after a while; after `auth_failure` it does not."""
        step = (lambda: self._failed(reason)) if reason == "auth_failure" else (lambda: self._degraded(reason))
        await self._give(step, frozenset({State.READY}), "WhatsApp is not connected.")

    async def log_out_on_phone(self) -> None:
        """The owner ends the pairing on the phone."""
        await self._give(lambda: self._logged_out("phone"), _PAIRED, "No phone is paired.")

    async def ban(self) -> None:
        """WhatsApp blocks the number."""
        await self._give(self._banned, _PAIRED, "No phone is paired.")

    def freeze(self) -> None:
        """Connected but dead: nothing is told, nothing acked, and the state goes on saying what it said."""
        if self.frozen:
            raise NotPossible("frozen", "It is frozen already.")
        self._thawed.clear()
        self._hold_or_not()

    def thaw(self) -> None:
        """Ends a freeze; what was held back happens now."""
        if not self.frozen:
            raise NotPossible("not_frozen", "It is not frozen.")
        self._thawed.set()
        self._hold_or_not()

    def receive(self, chat_wa_id: str, body: str, attachment: engine.Attachment | None = None) -> None:
        """Somebody writes; it arrives as soon as WhatsApp is there."""
        self._must_be_paired()
        self._phone.receive(chat_wa_id, body, attachment=attachment)

    def flood(self, count: int, per_second: float) -> None:
        """`count` messages arrive, `per_second` of them in each second of the clock."""
        self._must_be_paired()
        self._phone.flood(count, per_second)

    # the states -----------------------------------------------------------------------------------------------------

    def _first_step(self, remembered: engine.Remembered) -> Step:
        if remembered.state == State.BLOCKED:
            return lambda: self._rest_as(State.BLOCKED, "banned")
        if remembered.state == State.LOGGED_OUT and not self._paired:
            return lambda: self._rest_as(State.LOGGED_OUT, "remembered")
        return self._starting

    async def _live(self, step: Step) -> None:
        while True:
            await asyncio.sleep(0)  # no order of states can keep the loop to itself
            try:
                step = await step()
            except _Diverted as diverted:
                self._following = diverted.order
                step = diverted.order.step

    async def _starting(self) -> Step:
        await self._enter(State.STARTING)
        await self._rest(STARTS_WITHIN)
        return self._ready if self._paired else self._showing_codes

    async def _showing_codes(self) -> Step:
        for number, lasts in enumerate(CODES_LAST, 1):
            expires_at = datetime.now(UTC) + timedelta(seconds=lasts / self.speed)
            code = engine.Code(self._phone.code(), expires_at, number)
            if number == 1:
                await self._enter(State.QR, code=code)
            self._standing = Standing(State.QR, None, self._standing.since, None, code)
            await self._tell(engine.CodeShown(code))
            await self._rest(lasts)
        return lambda: self._rest_as(State.STOPPED, "qr_timeout")

    async def _authenticated(self) -> Step:
        self._paired = True
        await self._enter(State.AUTHENTICATED)
        await self._tell(engine.Authenticated())
        await self._rest(PAIRS_WITHIN)
        return self._syncing

    async def _syncing(self) -> Step:
        await self._enter(State.SYNCING)
        for percent in SYNC_STEPS:
            await self._rest(SYNC_STEP_LASTS)
            await self._tell(engine.Synced(percent))
        return self._ready

    async def _ready(self) -> Step:
        await self._enter(State.READY)
        await self._tell(engine.Ready(self._phone.number))
        return await self._rest_for_good()

    async def _degraded(self, reason: str) -> Step:
        await self._enter(State.DEGRADED, reason)
        await self._tell(engine.Disconnected(reason))
        await self._rest(RECOVERS_WITHIN)
        return self._ready

    async def _logged_out(self, reason: str) -> Step:
        self._paired = False
        return await self._ended(State.LOGGED_OUT, reason, "logout")

    async def _banned(self) -> Step:
        return await self._ended(State.BLOCKED, "banned", "banned")

    async def _failed(self, reason: str) -> Step:
        return await self._ended(State.FAILED, reason, reason)

    async def _ended(self, state: State, reason: str, told: str) -> Step:
        self.agenda.clear()
        await self._enter(state, reason)
        await self._tell(engine.Disconnected(told))
        return await self._rest_for_good()

    async def _rest_as(self, state: State, reason: str) -> Step:
        await self._enter(state, reason)
        return await self._rest_for_good()

    # entering, resting, telling -------------------------------------------------------------------------------------

    async def _enter(self, state: State, reason: str | None = None, code: engine.Code | None = None) -> None:
        number = self._phone.number if self._paired else None
        self._standing = Standing(state, reason, datetime.now(UTC), number, code)
        (self._code_on_show.set if state is State.QR else self._code_on_show.clear)()
        self.agenda.hold(True)  # nothing happens in a state that nobody was told of
        await self._tell(engine.StateChanged(self._standing))
        self._hold_or_not()
        order, self._following = self._following, None
        if order is not None:
            order.followed.set()

    async def _rest(self, seconds: float | None) -> None:
        """Waits as long as a state lasts (None: until an order comes); nothing moves on in a freeze."""
        try:
            async with asyncio.timeout(None if seconds is None else seconds / self.speed):
                await self._stirred.wait()
        except TimeoutError:
            pass
        await self._thawed.wait()
        self._stirred.clear()
        order, self._order = self._order, None
        if order is not None:
            raise _Diverted(order)

    async def _rest_for_good(self) -> Step:
        while True:
            await self._rest(None)

    async def _give(self, step: Step, possible_in: frozenset[State] | None = None, otherwise: str = "") -> None:
        """Has the session go on with `step`, and returns when it has entered that state and told so."""
        async with self._one_order:
            if self.frozen:
                raise NotPossible("frozen", "WhatsApp does not answer.")
            if possible_in is not None and self._standing.state not in possible_in:
                raise NotPossible("not_possible", otherwise)
            order = self._order = _Order(step)
            self._stirred.set()
            try:
                async with asyncio.timeout(ORDER_WITHIN):
                    await order.followed.wait()
            except TimeoutError:
                raise NotPossible("busy", "The session is busy: try again in a moment.") from None

    async def _tell(self, event: engine.Event) -> None:
        if self._hear is not None:
            await self._hear(event)

    def _hold_or_not(self) -> None:
        self.agenda.hold(self.frozen or self._standing.state is not State.READY)

    def _must_be_paired(self) -> None:
        if self._standing.state not in _PAIRED:
            raise NotConnected
