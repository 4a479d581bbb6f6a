"""The daemon's configuration: frozen classes filled from a TOML file, every problem of which is named at once.

A component's section is that component's own class, so each default stands in one place. ``config/ifbusd.toml`` and
``docs/configuration.md`` are generated from here (`ifbusd.config_reference`); the reasons are the classes' docstrings.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import attrs
from attrs.validators import and_, deep_iterable, ge, le, lt

from ifbus.errors import ConfigInvalid
from ifbusd.bus.config import BusConfig
from ifbusd.chassis.model import ChassisConfig
from ifbusd.coordinator.model import CoordinatorConfig
from ifbusd.governor.model import Policy
from ifbusd.rpc.limits import RpcLimits
from ifbusd.store.config import StoreConfig

if TYPE_CHECKING:
    # Where there is no file, a start goes without TOML and cattrs.
    from ifbusd.toml_structure import KeyPath, Problem

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEFAULT_FILE: Final = Path("/etc/ifbusd/ifbusd.toml")
# sun_path of a Unix socket is 108 bytes with its NUL; a longer path fails in bind with a bare "path too long".
MAX_SOCKET_PATH_BYTES: Final = 107
_LEAST_MODE: Final = 0o600
_MOST_MODE: Final = 0o777
# Far above any real file; a larger one is something else, such as a device or a log.
MAX_FILE_BYTES: Final = 1024 * 1024
# A file of another kind has one problem, not thousands.
MAX_PROBLEMS: Final = 50


def _fits_a_socket_address(_: object, __: object, value: Path) -> None:
    if len(os.fsencode(value)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"expected a path of at most {MAX_SOCKET_PATH_BYTES} bytes, got {len(os.fsencode(value))}")


def _permissions(_: object, __: object, value: int) -> None:
    # Before the bounds below, which would say them in decimal: `socket_mode = 660` is how one gets here.
    if not _LEAST_MODE <= value <= _MOST_MODE:
        raise ValueError(f"expected octal permissions, {_LEAST_MODE:#o} to {_MOST_MODE:#o}, got {value:#o} ({value})")


@attrs.frozen(kw_only=True)
class DaemonConfig:
    """The process itself.

    Attributes:
        state_dir: Directory of store, keys and module cache, 0700 and of the daemon's own user. The service manager's
            $STATE_DIRECTORY is the default where there is one.
        socket: Where the daemon listens, unless the service manager passes it a socket. $RUNTIME_DIRECTORY/ifbusd.sock is
            the default where there is one.
        socket_group: Group that owns the socket: who may connect; "" is the daemon's own. It does not apply to a socket
            that was passed.
        socket_mode: Permissions of the socket. Owner and group: callers are told apart by the kernel's word, not by
            these, but who cannot connect cannot be a burden.
        drain_ms: When it is told to stop, it first gives out no new work for so long and lets holders finish; what is held then is given
            back. 0: it stops at once, and what is held goes on when it is started again, or ends with its lease.
        grace_ms: How long requests under way may go on at shut-down. 5 s: well below systemd's 90 s before SIGKILL.
        log_format: A line of text or of JSON for each event; `auto` is text on a terminal.
        log_level: The least severe events that are logged. A healthy daemon logs its start and stop.
    """

    state_dir: Path = Path("/var/lib/ifbusd")
    socket: Path = attrs.field(default=Path("/run/ifbusd/ifbusd.sock"), validator=_fits_a_socket_address)
    socket_group: str = "ifbus"
    socket_mode: int = attrs.field(default=0o660, validator=and_(_permissions, ge(_LEAST_MODE), le(_MOST_MODE)))
    drain_ms: int = attrs.field(default=0, validator=and_(ge(0), le(24 * 3_600_000)))
    grace_ms: int = attrs.field(default=5_000, validator=and_(ge(0), le(60_000)))
    log_format: LogFormat = "auto"
    log_level: LogLevel = "info"

    def socket_gid(self) -> int | None:
        """Id of the socket's group, None for the daemon's own.

        Raises:
            ConfigInvalid: This host has no such group.
        """
        if not self.socket_group:
            return None
        known = _group_ids()
        if self.socket_group not in known:
            raise ConfigInvalid(
                f"cannot give the socket to group {self.socket_group}: this host has none; "
                f"groupadd --system {self.socket_group}, or another daemon.socket_group"
            )
        return known[self.socket_group]


@attrs.frozen(kw_only=True)
class OperatorsConfig:
    """Who may make the decisions that only a person makes: reset a breaker, raise a budget.

    Attributes:
        uids: User ids with the operator role.
        groups: Groups whose members have the operator role, by name. `ifbus-admin` counts only where it exists.
    """

    uids: tuple[int, ...] = attrs.field(default=(0,), validator=deep_iterable(and_(ge(0), lt(2**32 - 1))))
    groups: tuple[str, ...] = ("ifbus-admin",)

    def gids(self) -> frozenset[int]:
        """The ids of the groups that exist (`load` refuses a file that names one that does not)."""
        known = _group_ids()
        return frozenset(known[name] for name in self.groups if name in known)


@attrs.frozen(kw_only=True)
class Config:
    """All of it, a section a component."""

    daemon: DaemonConfig = attrs.field(factory=DaemonConfig)
    operators: OperatorsConfig = attrs.field(factory=OperatorsConfig)
    rpc: RpcLimits = attrs.field(factory=RpcLimits)
    store: StoreConfig = attrs.field(factory=StoreConfig)
    bus: BusConfig = attrs.field(factory=BusConfig)
    coordinator: CoordinatorConfig = attrs.field(factory=CoordinatorConfig)
    governor: Policy = attrs.field(factory=Policy)
    chassis: ChassisConfig = attrs.field(factory=ChassisConfig)

    def __attrs_post_init__(self) -> None:
        if self.bus.backend == "nats" and self.store.backend != "etcd":
            raise ValueError(
                'expected store.backend = "etcd" with bus.backend = "nats": a store of one host has no other hosts'
            )


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file, or the defaults without one.

    Args:
        environ: Where a service manager says which directories it made.

    Raises:
        ConfigInvalid: The file cannot be read or is wrong; the message has one line per problem with file, line, key and
            what is expected, `data["problems"]` the same as a list.
    """
    base = defaults(environ)
    if path is None:
        return base
    from ifbusd.toml_structure import parse, structure

    text = _read(path)
    try:
        document = parse(text)
    except ValueError as error:
        raise ConfigInvalid(f"{path}: no TOML: {error}", data={"file": str(path)}) from None
    problems: list[Problem] = []
    config = structure(document, base, problems)
    problems += _unknown_groups(config, base)
    if problems:
        raise _invalid(path, text, problems)
    return config


def defaults(environ: Mapping[str, str]) -> Config:
    """The defaults, with the directories that a service manager made for this process."""
    config = DaemonConfig()
    # Both may name several directories, separated by colons; the unit lists ours first.
    if state := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        config = attrs.evolve(config, state_dir=Path(state))
    if runtime := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        config = attrs.evolve(config, socket=Path(runtime) / "ifbusd.sock")
    return Config(daemon=config)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigInvalid(f"{path}: expected at most {MAX_FILE_BYTES} bytes", data={"file": str(path)})
        return data.decode()
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}", data={"file": str(path)}) from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path}: expected UTF-8, byte {error.start} is none", data={"file": str(path)}) from error


def _unknown_groups(config: Config, base: Config) -> list[Problem]:
    from ifbusd.toml_structure import Problem

    # Only what differs from the defaults: those must load on a host without the default groups, too.
    known = _group_ids()
    named: list[tuple[KeyPath, str]] = []
    if config.operators.groups != base.operators.groups:
        named += [(("operators", "groups"), name) for name in config.operators.groups]
    if config.daemon.socket_group not in ("", base.daemon.socket_group):
        named.append((("daemon", "socket_group"), config.daemon.socket_group))
    return [
        Problem(path, f"expected a group of this host, got {name!r:.60}{_nearest_group(name, known)}")
        for path, name in named
        if name not in known
    ]


def _nearest_group(name: str, known: Mapping[str, int]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name[:64], known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; groupadd --system {name}" if name.isidentifier() else ""


def _group_ids() -> dict[str, int]:
    return {group.gr_name: group.gr_gid for group in grp.getgrall()}


def _invalid(path: Path, text: str, problems: list[Problem]) -> ConfigInvalid:
    from ifbusd.toml_structure import lines_of_keys

    lines = lines_of_keys(text)

    def where(problem: Problem) -> str:
        line = lines.get(problem.path)
        return f"{path} line {line}" if line else f"{path}"

    problems.sort(key=lambda problem: lines.get(problem.path, 0))
    said = [f"{where(problem)}: {'.'.join(problem.path)}: {problem.text}" for problem in problems]
    if len(said) > MAX_PROBLEMS:
        said[MAX_PROBLEMS:] = [f"{path}: and {len(said) - MAX_PROBLEMS} more"]
    return ConfigInvalid("\n".join(said), data={"file": str(path), "problems": said})
