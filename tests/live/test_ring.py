"""The ring: numbers without holes, bounds that hold, and no claim beyond what is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queunir_trio.live.ring import Ring


def filled(ring: Ring, count: int) -> Ring:
    for number in range(1, count + 1):
        ring.put("wa:x", b"%d" % number)
    return ring


def numbers(frames: list[bytes]) -> list[int]:
    return [int(frame.split(b"\n", 1)[0].rpartition(b":")[2]) for frame in frames]


def test_frames_are_numbered_from_one_under_the_rings_epoch() -> None:
    ring = Ring()
    assert ring.here == b"%b:0" % ring.epoch.encode()
    assert ring.put("wa:x", b"1") == b"id: %b:1\nevent: wa:x\ndata: 1\n\n" % ring.epoch.encode()
    assert ring.here == b"%b:1" % ring.epoch.encode()


def test_every_ring_has_an_epoch_of_its_own() -> None:
    assert len({Ring().epoch for _ in range(100)}) == 100


def test_what_follows_a_number_is_told_in_order() -> None:
    ring = filled(Ring(), 5)
    assert numbers(ring.after(2) or []) == [3, 4, 5]
    assert ring.after(5) == []
    assert numbers(ring.after(0, 2) or []) == [1, 2]


def test_the_oldest_leave_first_when_there_are_too_many() -> None:
    ring = filled(Ring(frames_at_most=3), 10)
    assert ring.after(6) is None
    assert numbers(ring.after(7) or []) == [8, 9, 10]


def test_the_oldest_leave_first_when_they_are_too_large() -> None:
    ring = Ring(bytes_at_most=1000)
    for _ in range(10):
        ring.put("wa:x", b"x" * 400)
    assert ring.after(7) is None
    assert numbers(ring.after(8) or []) == [9, 10]


def test_the_newest_is_held_whatever_its_size() -> None:
    ring = filled(Ring(bytes_at_most=100), 3)
    ring.put("wa:x", b"x" * 500)
    assert numbers(ring.after(3) or []) == [4]
    ring.put("wa:x", b"y")
    assert numbers(ring.after(4) or []) == [5]
    assert ring.after(3) is None


@pytest.mark.parametrize("seq", [-1, -5, 6, 1000])
def test_a_number_that_never_was_is_not_known(seq: int) -> None:
    assert filled(Ring(), 5).after(seq) is None


def test_an_id_is_known_only_in_its_own_ring_and_while_all_that_follows_is_held() -> None:
    ring = filled(Ring(frames_at_most=3), 5)
    assert ring.known(f"{ring.epoch}:3") == 3
    assert ring.known(f"{ring.epoch}:5") == 5
    for unknown in (
        f"{ring.epoch}:1",
        f"{ring.epoch}:6",
        f"{Ring().epoch}:3",
        "",
        "5",
        f"{ring.epoch}:5\n",
        "x" * 9999,
    ):
        assert ring.known(unknown) is None


def test_after_forgetting_only_the_newest_number_is_a_place_to_go_on_from() -> None:
    ring = filled(Ring(), 5)
    ring.forget()
    assert ring.after(4) is None
    assert ring.after(5) == []
    ring.put("wa:x", b"6")
    assert numbers(ring.after(5) or []) == [6]


@given(
    st.lists(st.integers(0, 300), max_size=60),
    st.integers(1, 20),
    st.integers(1, 2000),
    st.integers(-3, 70),
)
def test_any_place_is_answered_by_all_that_follows_or_not_at_all(
    sizes: list[int], frames_at_most: int, bytes_at_most: int, seq: int
) -> None:
    ring = Ring(frames_at_most, bytes_at_most)
    for size in sizes:
        ring.put("wa:x", b"x" * size)
    frames = ring.after(seq)
    if frames is not None:
        assert numbers(frames) == list(range(seq + 1, len(sizes) + 1))
    held = ring.after(max(0, ring.last - frames_at_most))
    assert held is None or len(held) <= frames_at_most
    kept = next(frames for start in range(ring.last + 1) if (frames := ring.after(start)) is not None)
    assert len(kept) <= 1 or sum(map(len, kept)) <= bytes_at_most
