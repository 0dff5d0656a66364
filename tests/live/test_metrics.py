"""What Prometheus reads is what it understands."""

from collections import Counter

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from queunir_trio import __version__
from queunir_trio.live.metrics import Lag, Metrics

REFUSALS = Counter({"csrf": 2, "bad_request": 5})


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_figures_are_read_when_they_are_asked_for() -> None:
    streams, requests = 3.0, 100.0
    metrics = Metrics(
        {"streams": ("Open streams.", lambda: streams)},
        {"requests": ("Requests so far.", lambda: requests)},
        lambda: REFUSALS,
    )
    read = samples(metrics)
    assert read["queunir_info", (("version", __version__),)] == 1
    assert read["queunir_streams", ()] == 3
    assert read["queunir_requests_total", ()] == 100
    assert read["queunir_refusals_total", (("code", "csrf"),)] == 2
    assert read["queunir_refusals_total", (("code", "bad_request"),)] == 5
    streams, requests = 4.0, 101.0
    read = samples(metrics)
    assert (read["queunir_streams", ()], read["queunir_requests_total", ()]) == (4, 101)


def test_each_family_says_what_it_is() -> None:
    metrics = Metrics({"streams": ("Open streams.", lambda: 1)}, {"requests": ("Requests so far.", lambda: 1)}, dict)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    assert (families["queunir_streams"].type, families["queunir_streams"].documentation) == ("gauge", "Open streams.")
    assert families["queunir_requests"].type == "counter"
    assert families["queunir_refusals"].samples == []
    assert "process_resident_memory_bytes" in families
    assert "process_open_fds" in families
    assert "python_info" in families


def test_two_services_in_one_process_do_not_mix() -> None:
    first = Metrics({"a": ("A.", lambda: 1)}, {}, dict)
    second = Metrics({"b": ("B.", lambda: 2)}, {}, dict)
    assert ("queunir_a", ()) not in samples(second)
    assert ("queunir_b", ()) not in samples(first)


async def test_a_blocked_loop_shows_as_lag(mock_clock: MockClock) -> None:
    lag = Lag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert lag.seconds == 0.0
        mock_clock.jump(3.5)
        await trio.testing.wait_all_tasks_blocked()
        assert lag.seconds == pytest.approx(2.5)
        nursery.cancel_scope.cancel()
