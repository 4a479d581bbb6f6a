"""The servers that the benchmarks talk to, each a process of its own: ours, the floors, and what people would pick instead."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
from harness import cpu_us, pin, rss_mib

HERE: Final = Path(__file__).parent
START_S: Final = 30.0
# On a disk, not in memory: /tmp may be a tmpfs, where waiting for the disk costs nothing.
DISK: Final = "/var/tmp"


@attrs.frozen(kw_only=True)
class Server:
    """A server process.

    Attributes:
        address: The path of its socket.
    """

    address: str
    pid: int

    def pin(self, cpu: int) -> None:
        """Keep it, and what it starts, on one processor."""
        pin(self.pid, cpu)

    @property
    def cpu_us(self) -> float:
        """Its processor time so far, with its children's."""
        return cpu_us(self.pid)

    @property
    def rss_mib(self) -> float:
        """Its resident memory, without its children's."""
        return rss_mib(self.pid)


@contextmanager
def c_pingpong(directory: Path) -> Iterator[Server | None]:
    """The limit: 80 bytes there and back in C; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        print("SKIPPED: C ping-pong (cc is not installed)")
        yield None
        return
    binary, path = directory / "pingpong", directory / "c"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(HERE / "pingpong.c")], check=True)
    with _running([str(binary), str(path)], path, says=b"ready") as server:
        yield server


@contextmanager
def bare(directory: Path, mode: str) -> Iterator[Server]:
    """The bare server of `bare.py`: ``echo``, ``durable`` or ``relay``."""
    path = directory / f"bare-{mode}"
    with _running([sys.executable, str(HERE / "bare.py"), mode, str(path)], path, says=b"ready") as server:
        yield server


@contextmanager
def bare_worker(directory: Path, module: Path, export: str) -> Iterator[Server]:
    """A process that runs one function of a WebAssembly module."""
    path = directory / f"worker-{export}"
    command = [sys.executable, str(HERE / "bare_worker.py"), str(path), str(module), export]
    with _running(command, path, says=b"ready") as server:
        yield server


@contextmanager
def redis(directory: Path, *, is_durable: bool = False) -> Iterator[Server | None]:
    """Redis without persistence, or with every change synced; None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        print("SKIPPED: Redis (redis-server is not installed)")
        yield None
        return
    path = directory / ("redis-durable" if is_durable else "redis")
    files = directory / f"{path.name}-files"
    files.mkdir()
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(files)]
    command += ["--appendonly", "yes", "--appendfsync", "always"] if is_durable else ["--appendonly", "no"]
    with _running([*command, "--logfile", str(files / "log")], path) as server:
        yield server


@contextmanager
def grpc(directory: Path) -> Iterator[Server | None]:
    """gRPC's synchronous server; None where it is not installed."""
    if importlib.util.find_spec("grpc") is None:
        print("SKIPPED: gRPC (grpcio is not installed)")
        yield None
        return
    path = directory / "grpc"
    with _running([sys.executable, str(HERE / "grpc_echo.py"), str(path)], path, says=b"ready") as server:
        yield server


# Swarms are no operators, whoever runs the benchmark; of an operator's connection each piece is asked who sent it.
_ORDINARY_USERS: Final = '[daemon]\nsocket_group = ""\nlog_level = "warning"\n[operators]\nuids = []\ngroups = []\n'


@contextmanager
def ifbusd(directory: Path, config: str = "", *, program: Sequence[str] = ("-m", "ifbusd")) -> Iterator[Server]:
    """The real daemon on the embedded store, as users run it.

    Args:
        config: TOML for what its defaults do not allow.
        program: What Python runs instead, with the same arguments.
    """
    path = directory / "ifbusd.sock"
    # Not `--dev`, which makes whoever starts it an operator.
    arguments = ["--state", str(directory / "state"), "--socket", str(path)]
    (directory / "ifbusd.toml").write_text(_ORDINARY_USERS + config)
    arguments += ["--config", str(directory / "ifbusd.toml")]
    with _running([sys.executable, *program, *arguments], path) as server:
        yield server


@contextmanager
def _running(command: Sequence[str], path: Path, *, says: bytes = b"") -> Iterator[Server]:
    """A server process from its first line, or else from its first connection, to the end of the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            is_ready = process.stdout.readline().startswith(says) if says else _accepts(path, process)
            if not is_ready:
                raise RuntimeError(f"{command[0]} did not start")
            yield Server(address=str(path), pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _accepts(path: Path, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                time.sleep(0.01)
            else:
                return True
    return False
