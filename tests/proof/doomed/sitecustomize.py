"""Python runs this at its start where it stands on the path: the daemon then dies at the n-th step after it was told to count.

A step is what one task does between two awaits. `DOOMED_AT` says which, SIGUSR1 begins the counting, and the file `DOOMED_ARMED`
shows that it has begun. The daemon's own code knows nothing of it.
"""

import os
import signal
import sys
from pathlib import Path

_STEP = int(os.environ.get("DOOMED_AT", "0"))

# Only the daemon itself: its zygote and its workers start from the same path.
if _STEP and sys.orig_argv[1:3] == ["-m", "ifbusd"]:
    import trio

    class _Doom(trio.abc.Instrument):
        """Counts the steps of all tasks."""

        left = 0

        def arm(self, *_: object) -> None:
            """Begin to count."""
            self.left = _STEP
            Path(os.environ["DOOMED_ARMED"]).touch()

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            """Die, if it is the time."""
            if self.left:
                self.left -= 1
                if not self.left:
                    os.kill(os.getpid(), signal.SIGKILL)

    _doom, _run = _Doom(), trio.run

    def _run_doomed(*arguments, **options):  # type: ignore[no-untyped-def]  # as trio's
        signal.signal(signal.SIGUSR1, _doom.arm)
        return _run(*arguments, **{**options, "instruments": [_doom]})

    trio.run = _run_doomed
