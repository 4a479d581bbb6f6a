"""The `ifbusd` command: arguments, environment and exit status; the daemon itself is put together in `ifbusd.daemon`.

Exit status: 0 stopped by SIGTERM or SIGINT, 2 wrong configuration or arguments, 1 anything else; each with one clear
sentence per problem on standard error. Imports wait until they are needed, so that ``--version`` and ``--check-config`` are
quick and the zygote starts beside a small process.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import gc
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ifbus.connect import is_private, own_directory
from ifbus.errors import ConfigInvalid, IfbusError
from ifbus.version import VERSION
from ifbusd.chassis.launch import Launched, launch

if TYPE_CHECKING:
    from ifbusd.config import Config, DaemonConfig
    from ifbusd.daemon import Ready

STOPPED: Final = 0
FAILED: Final = 1
WRONG_CONFIG: Final = 2

# The zygote could only say with a traceback of its own that one of these is missing.
_ZYGOTE_NEEDS: Final = ("landlockpy", "seccompy", "wasmtime")
# What to do about the refusals that a first start meets.
_ANOTHER_PLACE: Final = "; name another place: --state DIR, --socket PATH"
_REMEDIES: Final = {
    errno.EACCES: "; a daemon of your own: ifbusd --dev, without --state and --socket",
    errno.ENOENT: _ANOTHER_PLACE,
    errno.ENOTDIR: _ANOTHER_PLACE,
    errno.EROFS: _ANOTHER_PLACE,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.version:
        print(f"ifbusd {VERSION}")
        return STOPPED
    # A client's identity must not become the daemon's, nor that of what it starts (UX 4).
    for name in [name for name in os.environ if name.startswith("IFBUS_")]:
        del os.environ[name]

    try:
        if arguments.check_config:
            with _configuration(arguments) as config:
                _check_group(config, arguments)
            print(f"{arguments.config or 'defaults'}: ok")
            return STOPPED
        # What is made while starting lives for good: `daemon.serve` lets the collector loose on what comes after.
        gc.disable()
        _require(*_ZYGOTE_NEEDS)
        # Takes as long to get ready as the rest of us, so it goes first.
        launched = launch()
        try:
            with _configuration(arguments) as config:
                return _run(config, arguments, launched)
        finally:
            gc.freeze()  # or the interpreter looks through everything once more, which takes a second where there are many tasks
            # Nothing where the daemon has done so; where it did not get that far, the zygote is not to complain.
            launched.process.kill()
            launched.process.wait()
    except KeyboardInterrupt:
        return STOPPED  # before the daemon listens to signals itself
    except Exception as error:
        reasons = list(_leaves(error))
        sentences = [_sentence(reason) for reason in reasons]
        if not all(sentences):
            raise  # a bug: the traceback is what helps
        for sentence in sentences:
            print(f"ifbusd: {sentence}", file=sys.stderr)
        return WRONG_CONFIG if any(isinstance(reason, ConfigInvalid) for reason in reasons) else FAILED


def _require(*packages: str) -> None:
    """Raise `ModuleNotFoundError` for the first package that is not installed; nothing is imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _check_group(config: Config, arguments: argparse.Namespace) -> None:
    """Say that the socket's group is missing; no mistake in the file, and none at all where systemd passes the socket."""
    if arguments.dev:
        return
    try:
        config.daemon.socket_gid()
    except ConfigInvalid as error:
        print(f"{error.message} (a socket that systemd passes has its own)")


def _path(word: str) -> Path:
    if not word:  # to `Path`, that is where we are
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ifbusd",
        description="The daemon that decides which agent may work on what, with what money, and remembers why.",
        epilog="examples:\n  ifbusd --dev\n  ifbusd --dev --state DIR\n  ifbusd --config FILE --check-config",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=_path, metavar="FILE", help="default: /etc/ifbusd/ifbusd.toml, if it exists")
    parser.add_argument(
        "--dev", action="store_true", help="in the foreground for the current user, in a temporary state"
    )
    parser.add_argument("--state", type=_path, metavar="DIR", help="state directory; kept, also with --dev")
    parser.add_argument("--socket", type=_path, metavar="PATH", help="where to listen")
    parser.add_argument(
        "--check-config", action="store_true", help="read the configuration, name all problems, and end"
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    return parser


@contextlib.contextmanager
def _configuration(arguments: argparse.Namespace) -> Iterator[Config]:
    """What file, environment and arguments say together; directories that `--dev` needs exist meanwhile."""
    import attrs

    from ifbusd import config as configuration

    if arguments.config is None and not arguments.dev and configuration.DEFAULT_FILE.exists():
        arguments.config = configuration.DEFAULT_FILE
    config = configuration.load(arguments.config)
    with contextlib.ExitStack() as stack:
        daemon = config.daemon
        try:
            if arguments.state:
                daemon = attrs.evolve(daemon, state_dir=arguments.state.absolute())
            if arguments.socket:
                daemon = attrs.evolve(daemon, socket=arguments.socket.absolute())
            if arguments.dev and not arguments.check_config:
                daemon = _for_one_user(daemon, arguments, stack)
                uids = (*config.operators.uids, os.getuid())
                config = attrs.evolve(config, operators=attrs.evolve(config.operators, uids=uids))
        except ValueError as error:
            raise ConfigInvalid(f"cannot listen there: {error}; name another --socket") from None
        yield attrs.evolve(config, daemon=daemon)


def _for_one_user(daemon: DaemonConfig, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> DaemonConfig:
    """A state directory that goes at the end, unless one is named, and a socket that only this user reaches."""
    import tempfile

    import attrs

    if not arguments.state:
        state_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbusd-"))
        daemon = attrs.evolve(daemon, state_dir=Path(state_dir))
    if not arguments.socket:
        daemon = attrs.evolve(daemon, socket=_private_directory() / "ifbusd.sock")
    return attrs.evolve(daemon, socket_group="", socket_mode=0o600)


def _private_directory() -> Path:
    """Where `ifbus` looks for a user's own daemon."""
    path = Path(own_directory(os.environ))
    path.mkdir(mode=0o700, exist_ok=True)
    if not is_private(str(path)):
        raise PermissionError(
            errno.EPERM, "expected a directory of your own with mode 0700, or name a --socket", str(path)
        )
    return path


def _run(config: Config, arguments: argparse.Namespace, launched: Launched) -> int:
    from ifbusd import log
    from ifbusd.activation import inherited_listener
    from ifbusd.sdnotify import Notifier

    os.umask(0o077)  # what the daemon writes is nobody else's to read
    log.set_up(config.daemon.log_format, config.daemon.log_level)
    # Out of the environment before there is a child that could take them for its own.
    notifier = Notifier.from_environ()
    listener = inherited_listener()

    import trio

    from ifbusd import daemon

    logger = logging.getLogger("ifbusd")
    is_ready = False

    def on_ready(ready: Ready) -> None:
        nonlocal is_ready
        is_ready = True
        notifier.ready(f"listening on {ready.socket}")
        if arguments.dev:
            _show_ready(ready, arguments)
        else:
            logger.info(
                "ready", extra={"socket": ready.socket, "state_dir": str(ready.state_dir), "sandbox": ready.sandbox}
            )

    try:
        trio.run(
            functools.partial(
                daemon.serve, config, launched=launched, listener=listener, notifier=notifier, on_ready=on_ready
            )
        )
    except Exception:
        if is_ready:  # no matter of how it was started: one sentence is not enough to mend it
            logger.exception("the daemon failed")
        raise
    if not arguments.dev:
        logger.info("stopped")
    return STOPPED


def _show_ready(ready: Ready, arguments: argparse.Namespace) -> None:
    """What the first screen says (UX 1)."""
    finding = f"export IFBUS_SOCKET={ready.socket}" if arguments.socket else "ifbus finds it"
    keeping = str(arguments.state) if arguments.state else "temporary (keep it: --state DIR)"
    lines = [
        f'ifbusd {VERSION} ready in {_age_s():.2f} s, Ctrl-C stops it        next: ifbus demo | ifbus task add "hello"',
        f"  socket {ready.socket} ({finding})     state {keeping}     sandbox {ready.sandbox}",
    ]
    # Nobody may be reading (`ifbusd --dev | head -1`); that is no reason to stop.
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(lines), flush=True)


def _age_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _sentence(error: BaseException) -> str:
    """What a person should read of an error; ``""`` for one that is a bug."""
    if isinstance(error, IfbusError):
        return error.message.replace("\n", "\nifbusd: ")
    if isinstance(error, OSError) and error.errno is not None:
        about = f" {error.filename}" if error.filename else ""
        return f"cannot go on: {error.strerror}{about}{_REMEDIES.get(error.errno, '')}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "ifbus").startswith("ifbus"):
        return f"cannot start: {error.name} is not installed; pip install 'ifbus[daemon]'"
    return ""


if __name__ == "__main__":
    sys.exit(main())
