"""The hub: one channel for each slice and user, and who looks at them."""

from queunir_trio.live import hub as hubs
from queunir_trio.live.hub import Hub


def test_a_slice_has_one_channel_and_no_other_slice_has_it() -> None:
    hub = Hub()
    assert hub.channel(1) is hub.channel(1)
    assert hub.channel(1) is not hub.channel(2)
    assert hub.channel(1).ring.epoch != hub.channel(2).ring.epoch


def test_watched_are_those_with_viewers_and_changes_are_told() -> None:
    hub = Hub()
    changed: list[int] = []
    hub.on_audience(changed.append)
    hub.channel(1)
    hub.channel(2).enter()
    hub.channel(2).enter()
    assert hub.watched() == {2}
    hub.channel(2).leave()
    assert hub.watched() == {2}
    hub.channel(2).leave()
    assert hub.watched() == set()
    assert changed == [2, 2, 2, 2]


def test_a_forgotten_slice_begins_anew() -> None:
    hub = Hub()
    before = hub.channel(1)
    hub.forget(1)
    hub.forget(1)
    assert hub.channel(1) is not before


def test_a_waiting_users_channel_lives_until_the_last_stream_has_left() -> None:
    hub = Hub()
    channel = hub.waiting(5)
    assert hub.waiting(5) is channel
    assert hub.waiting(6) is not channel
    channel.enter()
    channel.leave()
    assert hub.waiting(5) is not channel


def test_channels_of_users_who_never_come_do_not_add_up() -> None:
    hub = Hub()
    watched = hub.waiting(1)
    watched.enter()
    for user_id in range(2, hubs.WAITING_AT_MOST + 50):
        hub.waiting(user_id)
    assert hub.waiting(1) is watched
    assert len(hub._waiting) == hubs.WAITING_AT_MOST


def test_what_slices_tell_is_learned_with_their_id() -> None:
    learned: list[tuple[int, str, bool, str | None]] = []
    hub = Hub(lambda *fact: learned.append(fact))
    hub.channel(3).publish("wa:state", b'{"state":"ready"}')
    assert learned == [(3, "ready", True, None)]
