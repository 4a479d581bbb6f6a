"""What the service manager is told (sd_notify(3)): ready, stopping, alive, status. Without one, nothing is sent."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends to one notification socket. A failure is logged once and never raised: the manager acts on silence by itself."""

    def __init__(self, address: str | None, *, watchdog_us: int = 0) -> None:
        self._address = address
        self._watchdog_us = watchdog_us
        self._has_failed = False

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take over NOTIFY_SOCKET and the watchdog's period, and remove them, so that no child process speaks for the daemon."""
        address = environ.pop("NOTIFY_SOCKET", None)
        period, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", None)
        ours = pid is None or pid == str(os.getpid())
        return cls(address, watchdog_us=int(period) if ours and period.isascii() and period.isdigit() else 0)

    def watchdog_interval_s(self) -> float | None:
        """How often to call `alive`, a third of the manager's period; None if it expects nothing."""
        return self._watchdog_us / 3e6 if self._address and self._watchdog_us else None

    def ready(self, status: str) -> None:
        """Start-up is over: the socket answers."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def draining(self, text: str, longest_ms: int) -> None:
        """Shut-down has begun and takes its time: the manager is to wait for so long."""
        self._send(f"STOPPING=1\nSTATUS={text}\nEXTEND_TIMEOUT_USEC={longest_ms * 1000}")

    def stopping(self) -> None:
        """Shut-down has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # "@name" is an abstract socket, whose address starts with a NUL byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(0.1)  # the manager's queue is megabytes deep: this bounds a stall, it is not expected
                sender.sendto(state.encode(), address)
        except OSError as error:
            if not self._has_failed:
                log.warning("cannot notify the service manager", extra={"socket": self._address, "error": str(error)})
            self._has_failed = True
