"""Heartbeats over a real pipe: silence, a loop that hangs, a pause of everything."""

import time

import pytest

from container.ipc import heartbeat
from container.ipc.heartbeat import Heartbeat, HeartbeatLimits, HeartbeatMonitor
from tests.support.servers import wait_for


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)


def _hang_within(monitor: HeartbeatMonitor, seconds: float) -> str | None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (hang := monitor.hang()) is not None:
            return hang
        time.sleep(0.01)
    return None


def test_a_process_that_beats_and_works_does_not_hang() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=5, round_s=5))
    beat = Heartbeat(monitor.fd)
    beat.start()
    beat.mark(is_ready=True)
    assert _hang_within(monitor, 0.5) is None


def test_a_ready_process_that_falls_silent_hangs() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=0.3, round_s=0))
    beat = Heartbeat(monitor.fd)
    beat.mark(is_ready=True)
    beat.write(0.0)
    assert "HEARTBEAT_TIMEOUT" in str(_hang_within(monitor, 30))


def test_silence_right_after_ready_is_a_hang() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=0.3, round_s=0))
    Heartbeat(monitor.fd).mark(is_ready=True)
    assert "HEARTBEAT_TIMEOUT" in str(_hang_within(monitor, 30))


def test_a_process_that_starts_may_be_silent() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=0.1, round_s=0))
    Heartbeat(monitor.fd).write(0.0)
    assert _hang_within(monitor, 0.5) is None


def test_a_loop_that_hangs_is_seen_though_the_process_beats() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=30, round_s=0.3))
    beat = Heartbeat(monitor.fd)
    beat.mark(is_ready=True)
    beat.start()
    assert "STEP_TIMEOUT" in str(_hang_within(monitor, 30))
    beat.mark(is_ready=True)
    wait_for(lambda: monitor.hang() is None, 10)


def test_limits_of_zero_are_none() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=0, round_s=0))
    beat = Heartbeat(monitor.fd)
    beat.mark(is_ready=True)
    beat.write(1e6)
    assert _hang_within(monitor, 0.3) is None


def test_a_pause_of_the_watching_process_is_no_silence() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=0.4, round_s=0))
    beat = Heartbeat(monitor.fd)
    beat.mark(is_ready=True)
    beat.write(0.0)
    assert monitor.hang() is None
    time.sleep(0.8)  # nobody looks; at the first look the child may not have run yet
    assert monitor.hang() is None


def test_heartbeats_never_block_on_a_full_pipe() -> None:
    monitor = HeartbeatMonitor(HeartbeatLimits(silence_s=5, round_s=5))
    beat = Heartbeat(monitor.fd)
    for _ in range(20_000):
        beat.write(0.0)
    assert monitor.hang() is None
