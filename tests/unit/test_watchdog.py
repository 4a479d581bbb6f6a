"""What feeds the service manager's watchdog."""

from typing import Any

import pytest
import trio
import trio.testing

from ifbus.errors import Unavailable
from ifbusd.daemon import _feed_watchdog

INTERVAL_S = 3.0


class Disk:
    """A store whose writes do as they are told."""

    def __init__(self, error: Unavailable | None, *, hangs: bool = False) -> None:
        self._error, self._hangs = error, hangs

    async def txn(self, txn: Any) -> None:
        if self._hangs:
            await trio.sleep_forever()
        if self._error is not None:
            raise self._error


class Manager:
    """Counts how often it heard that the daemon lives."""

    heard = 0

    def alive(self) -> None:
        self.heard += 1


@pytest.mark.parametrize(
    ("disk", "heard"),
    [
        (Disk(None), 4),
        (Disk(Unavailable("full", data={"reason": "storage_full"})), 4),  # a restart would make no room
        (Disk(Unavailable("away", data={"reason": "store_unreachable"})), 4),  # nor mend a network
        (Disk(Unavailable("the store has failed")), 0),
        (Disk(None, hangs=True), 0),
    ],
    ids=["healthy", "full", "cluster away", "failed", "stuck"],
)
async def test_the_watchdog_is_fed_while_a_restart_would_not_help(
    autojump_clock: trio.testing.MockClock, disk: Disk, heard: int
) -> None:
    """A write that fails for want of space, or of a cluster, neither starves the watchdog nor ends the daemon; any other failure starves it."""
    manager = Manager()
    with trio.move_on_after(3.5 * INTERVAL_S):
        await _feed_watchdog(manager, disk, INTERVAL_S)  # type: ignore[arg-type]
    assert manager.heard == heard
