"""A real daemon that every user of the host may connect to: the one of `ifbus.testing` is its own user's alone."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.integration.systemd.running import IFBUSD, PATIENCE_S, Manager

_CONFIG = """
[daemon]
state_dir = "{directory}/state"
socket = "{directory}/s"
socket_group = ""
socket_mode = 0o666

[operators]
uids = {uids}
groups = {groups}

{more}
"""


@attrs.frozen(kw_only=True)
class Opened:
    """The running daemon."""

    socket: Path
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")


@contextmanager
def opened(
    more: str = "",
    *,
    uids: Sequence[int] = (0,),
    groups: Sequence[str] = (),
    max_files: int | None = None,
) -> Iterator[Opened]:
    """A daemon, stopped at the end; by then it must not have ended by itself, nor have logged a traceback.

    Args:
        more: Further sections of its configuration.
        uids, groups: Its operators.
        max_files: So many descriptors are all that it may ever have.
    """
    directory = Path(tempfile.mkdtemp(prefix="ifbusd-"))
    directory.chmod(0o755)
    config, log_path = directory / "ifbusd.toml", directory / "log"
    config.write_text(_CONFIG.format(directory=directory, uids=list(uids), groups=list(groups), more=more))
    manager = Manager(directory / "notify")
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [IFBUSD, "--config", config],
                env={**os.environ, **manager.environ},
                stdout=log,
                stderr=log,
                preexec_fn=None if max_files is None else lambda: _allow(max_files),
            )
        try:
            manager.wait_for("READY=1")
            running = Opened(socket=directory / "s", process=process, log_path=log_path)
            yield running
            assert process.poll() in (None, 0), running.log()[-4000:]  # 0: the test has stopped it in order
            assert "Traceback" not in running.log(), running.log()[-4000:]
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    finally:
        manager.close()
        shutil.rmtree(directory)


def _allow(max_files: int | None) -> None:
    assert max_files is not None
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
