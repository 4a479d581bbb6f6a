"""Where commits wait for the disk."""

import pytest

from ifbusd.store.flush import FlushGauge


def gauge_after(samples_us: list[float], mode: str = "auto") -> FlushGauge:
    """A gauge with a limit of 1 ms that has seen these commits."""
    gauge = FlushGauge(mode=mode, limit_us=1000)  # type: ignore[arg-type]
    for sample in samples_us:
        gauge.note(sample)
    return gauge


@pytest.mark.parametrize(
    ("samples_us", "in_thread"),
    [
        ([], False),
        ([200.0] * 5, False),
        ([5000.0] * 5, True),
        # One long pause, a checkpoint of the disk's own, is no slow disk.
        ([200.0] * 5 + [500_000.0], False),
        ([200.0] * 5 + [500_000.0] * 6, True),
        # Between half the limit and the limit the choice stays as it was.
        ([5000.0] * 5 + [700.0] * 100, True),
        ([200.0] * 5 + [700.0] * 100, False),
        ([5000.0] * 5 + [400.0] * 100, False),
    ],
)
def test_auto_follows_the_disk(samples_us: list[float], in_thread: bool) -> None:
    """Commits leave the loop on a slow disk and come back to it on a fast one, with hysteresis between."""
    assert gauge_after(samples_us).in_thread is in_thread


@pytest.mark.parametrize(("mode", "in_thread"), [("inline", False), ("thread", True)])
def test_a_fixed_mode_stays(mode: str, in_thread: bool) -> None:
    """What the configuration fixes, no measurement changes."""
    assert gauge_after([5000.0] * 20, mode).in_thread is in_thread
    assert gauge_after([50.0] * 20, mode).in_thread is in_thread
