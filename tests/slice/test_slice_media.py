"""Files within the slice's limit: stored whole or not at all, counted, served, deleted, and never more than allowed."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slice.conftest import KEY, Slice, SliceDatabase

QUOTA = 1_000_000
SENDER = "34600111222@c.us"


@pytest.fixture
def media_dir(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return tmp_path / "media"


@pytest.fixture
def start(
    slice_database: SliceDatabase, free_port: int, media_dir: Path, run_slice: Callable[..., Any]
) -> Callable[[], Any]:
    """Starts the slice on the same files."""
    return lambda: run_slice(slice_database, free_port, MEDIA_DIR=str(media_dir), MEDIA_QUOTA_BYTES=str(QUOTA))


@pytest.fixture
def shop(start: Callable[[], Any]) -> Iterator[Slice]:
    with start() as running:
        yield running


def upload(shop: Slice, content: Any, mime_type: str = "image/png", query: str = "") -> Any:
    return shop.client.post(f"/api/media{query}", content=content, headers={"Content-Type": mime_type})


def usage(shop: Slice) -> int:
    found = shop.get("/api/media/usage").json()
    assert found["quota_bytes"] == QUOTA
    used: int = found["used_bytes"]
    status = shop.get("/api/status").json()
    assert (status["media_bytes"], status["media_quota_bytes"]) == (used, QUOTA)
    return used


def files(media_dir: Path) -> list[int]:
    return sorted(path.stat().st_size for path in media_dir.rglob("*") if path.is_file())


def in_pieces(size: int, piece: int = 50_000) -> Iterator[bytes]:
    """Sent without a length."""
    for begun in range(0, size, piece):
        yield b"x" * min(piece, size - begun)


def test_a_file_is_stored_listed_served_and_deleted(shop: Slice, media_dir: Path) -> None:
    content = bytes(range(256)) * 100
    answer = upload(shop, content, query="?filename=../caf%C3%A9.png&chat_wa_id=34600111222@c.us")
    assert answer.status_code == 201
    stored = answer.json()
    assert (stored["mime_type"], stored["file_name"]) == ("image/png", "café.png")
    assert (stored["file_size_bytes"], stored["storage_state"]) == (25_600, "stored")
    assert stored["chat_wa_id"] == SENDER
    assert usage(shop) == 25_600
    served = shop.get(f"/api/media/{stored['id']}")
    assert served.content == content
    assert served.headers["Content-Type"] == "image/png"
    assert served.headers["Content-Disposition"] == "attachment; filename*=UTF-8''caf%C3%A9.png"
    assert served.headers["X-Content-Type-Options"] == "nosniff"
    part = shop.get(f"/api/media/{stored['id']}", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, content[:10])
    assert [item["id"] for item in shop.get("/api/media").json()["items"]] == [stored["id"]]
    assert shop.get("/api/media?chat_wa_id=34600999999@c.us").json()["items"] == []
    assert shop.client.delete(f"/api/media/{stored['id']}").status_code == 204
    assert shop.client.delete(f"/api/media/{stored['id']}").status_code == 404
    assert shop.get(f"/api/media/{stored['id']}").status_code == 404
    assert (usage(shop), files(media_dir)) == (0, [])


def test_lists_come_in_pages(shop: Slice) -> None:
    ids = [upload(shop, b"x" * number).json()["id"] for number in range(1, 6)]
    first = shop.get("/api/media?limit=3").json()
    second = shop.get(f"/api/media?limit=3&cursor={first['next']}").json()
    assert [item["id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert second["next"] is None


def test_a_file_that_is_announced_too_large_is_refused_before_it_is_written(shop: Slice, media_dir: Path) -> None:
    answer = upload(shop, b"x" * (QUOTA + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "media_quota_exceeded")
    assert (usage(shop), files(media_dir)) == (0, [])
    assert upload(shop, b"x" * QUOTA).status_code == 201
    assert upload(shop, b"y").status_code == 413
    assert usage(shop) == QUOTA


def test_a_file_without_a_length_is_refused_when_it_becomes_too_large(shop: Slice, media_dir: Path) -> None:
    answer = upload(shop, in_pieces(QUOTA + 50_000))
    assert (answer.status_code, answer.json()["code"]) == (413, "media_quota_exceeded")
    assert (usage(shop), files(media_dir)) == (0, [])
    assert upload(shop, in_pieces(QUOTA)).status_code == 201
    assert (usage(shop), files(media_dir)) == (QUOTA, [QUOTA])


def test_deleting_frees_room(shop: Slice) -> None:
    first = upload(shop, b"x" * 900_000).json()["id"]
    assert upload(shop, b"x" * 200_000).status_code == 413
    shop.client.delete(f"/api/media/{first}")
    assert upload(shop, b"x" * 200_000).status_code == 201


def test_many_at_once_never_write_more_than_there_is_room(shop: Slice, media_dir: Path) -> None:
    """One announces its length, the next does not; each would have room alone."""
    statuses: list[int] = []

    def one(number: int) -> None:
        content = b"x" * 300_000 if number % 2 else in_pieces(300_000, 10_000)
        statuses.append(upload(shop, content).status_code)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(statuses) == {201, 413}
    kept = statuses.count(201)
    assert 1 <= kept <= 3
    assert usage(shop) == 300_000 * kept == sum(files(media_dir))


def test_nothing_is_left_of_a_file_whose_sender_goes_away(
    shop: Slice, media_dir: Path, wait_until: Callable[..., None]
) -> None:
    with socket.create_connection(("127.0.0.1", shop.port)) as sock:
        head = f"POST /api/media HTTP/1.1\r\nHost: a\r\nX-Slice-Key: {KEY}\r\nContent-Length: 500000\r\n\r\n"
        sock.sendall(head.encode() + b"x" * 100_000)
        wait_until(lambda: shop.get("/api/media/usage").json()["used_bytes"] == 500_000)
        assert upload(shop, b"x" * 600_000).status_code == 413, "its room is taken while it is on its way"
    wait_until(lambda: shop.get("/api/media/usage").json()["used_bytes"] == 0)
    assert files(media_dir) == []


def test_what_is_used_is_counted_anew_at_every_start(start: Callable[[], Any], media_dir: Path) -> None:
    with start() as shop:
        upload(shop, b"x" * 1000)
    (media_dir / "incoming" / "left").write_bytes(b"x" * 500)  # half a file of a process that was killed
    (media_dir / "old").mkdir()
    (media_dir / "old" / "photo.jpg").write_bytes(b"x" * 70)  # an older backend's
    with start() as shop:
        assert usage(shop) == 1070
    assert files(media_dir) == [70, 1000]


def test_a_file_that_no_row_knows_is_removed_at_the_start(
    start: Callable[[], Any], media_dir: Path, wait_until: Callable[..., None]
) -> None:
    stray = media_dir / "ab" / ("ab" + "0" * 30)
    stray.parent.mkdir()
    stray.write_bytes(b"x" * 10)
    with start() as shop:
        wait_until(lambda: not stray.exists())
        wait_until(lambda: shop.get("/api/media/usage").json()["used_bytes"] == 0)


def test_a_form_is_no_file_and_names_have_limits(shop: Slice, media_dir: Path) -> None:
    form = shop.client.post("/api/media", files={"file": b"x"})
    assert (form.status_code, form.json()["code"]) == (415, "wrong_type")
    assert upload(shop, b"x", query=f"?filename={'x' * 201}").status_code == 400
    assert upload(shop, b"x", query="?chat_wa_id=nobody").status_code == 400
    assert upload(shop, b"<script>", "text/html; charset=utf-8").json()["mime_type"] == "text/html"
    odd = upload(shop, b"x", "nonsense")
    assert odd.json()["mime_type"] == "application/octet-stream"
    assert shop.get("/api/media/0").status_code == 404
    assert shop.get("/api/media/" + "9" * 60).status_code == 404


def test_a_row_never_leads_out_of_the_directory(shop: Slice, tmp_path: Path, media_dir: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (media_dir / "link").symlink_to(tmp_path / "secret")
    shop.database.run(
        "insert into media_files (original_path) values ('../secret'), ($1), ('link')", str(tmp_path / "secret")
    )
    for media_id in (1, 2, 3):
        assert shop.get(f"/api/media/{media_id}").status_code == 404
        assert shop.client.delete(f"/api/media/{media_id}").status_code == 204
    assert (tmp_path / "secret").exists()


def test_an_older_backends_file_is_served_from_where_it_lies(shop: Slice, media_dir: Path) -> None:
    (media_dir / "34600").mkdir()
    (media_dir / "34600" / "photo.jpg").write_bytes(b"photo")
    shop.database.run(
        "insert into media_files (original_path) values ('34600/photo.jpg'), ($1)",
        str(media_dir / "34600" / "photo.jpg"),
    )
    assert [shop.get(f"/api/media/{media_id}").content for media_id in (1, 2)] == [b"photo", b"photo"]


# what arrives ---------------------------------------------------------------------------------------------------------


def receive(shop: Slice, size: int, body: str, wait_until: Callable[..., None]) -> dict[str, Any]:
    told = {"from": SENDER, "body": body, "media_bytes": size, "media_type": "image/jpeg"}
    assert shop.post("/api/simulator/message", told).status_code == 202

    def arrived() -> list[dict[str, Any]]:
        return [message for message in shop.messages(SENDER) if message["body"] == body]

    wait_until(lambda: bool(arrived()))
    return arrived()[0]


def test_what_arrives_counts_too_and_is_served(shop: Slice, wait_until: Callable[..., None]) -> None:
    shop.pair()
    message = receive(shop, 70_000, "a photo", wait_until)
    assert (message["has_media"], message["message_type"]) == (True, "image")
    served = shop.get(message["media_url"])
    assert (served.status_code, len(served.content)) == (200, 70_000)
    assert usage(shop) == 70_000
    (item,) = shop.get("/api/media").json()["items"]
    assert (item["message_wa_id"], item["chat_wa_id"]) == (message["wa_id"], SENDER)


def test_a_message_whose_file_finds_no_room_is_kept_without_it(
    shop: Slice, media_dir: Path, wait_until: Callable[..., None]
) -> None:
    shop.pair()
    upload(shop, b"x" * 990_000)
    message = receive(shop, 70_000, "too much", wait_until)
    assert (message["has_media"], message["body"]) == (True, "too much")
    row = shop.database.run("select storage_state, original_path from media_files where message_wa_id is not null")
    assert [tuple(found) for found in row] == [("over_quota", None)]
    assert shop.get(message["media_url"]).status_code == 404
    assert (usage(shop), files(media_dir)) == (990_000, [990_000])
    sent = shop.post(f"/api/chats/{SENDER}/messages", {"media_id": message["media_id"]})
    assert sent.status_code == 400, "what is not there can not be sent"


def test_a_directory_that_can_not_be_used_keeps_messages_coming(
    slice_database: SliceDatabase, free_port: int, run_slice: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    with run_slice(slice_database, free_port, MEDIA_DIR="/proc/nowhere") as shop:
        refused = upload(shop, b"x")
        assert (refused.status_code, refused.json()["code"]) == (503, "media_unavailable")
        shop.pair()
        assert receive(shop, 10, "hello", wait_until)["has_media"]
