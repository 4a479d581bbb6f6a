"""A hostile user: every sort of abuse in turn, by chance from a seed. A success of it is a failure of the daemon."""

import hashlib
import os
import random
import socket
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import msgpack

from ifbus.errors import IfbusError, Internal, Refused, RequestError
from ifbus.models import ResourceLimits, ServiceContract
from ifbus.module import CHUNK_BYTES
from ifbus.sync import Client
from tests.proof.plain import Plain, packed

_GUEST: Final = Path(__file__).parents[2] / "guests" / "core.wasm"
# It waits for no answer for longer: the next attack is due.
_PATIENCE_S: Final = 0.5
_HELD: Final = 16
_VICTIM: Final = "honest-0"
_GARBAGE: Final = (
    b"\x01" * 17,
    b"\xc1\xc1\xc1\xc1",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 300,
    b"\x91" * 10_000,
    b"\x81\xa1a" * 10_000,
    b"\xdc\x03\xff" * 5000,
    b"\xdd\xff\xff\xff\xff",
    b"\x94\x00\x01\xa2\xff\xfe\x90",
    b"\x81\x90\x01",
    packed(1, "daemon.ping", [b"x" * 70_000]),
)
_HALVES: Final = (
    b"\x94\x00\x01\xa1a" + b"\xdc\x03\xff" * 58,
    b"\x94\x00\x01\xabdaemon.p",
    b"\x94\x00\x01\xdb\x00\x00\xff\xff",
)


class Hostile:
    """One process of abuse, with a swarm and sandboxes of its own."""

    PAUSE_S = 0.0

    def __init__(self, path: str, number: int, seed: int) -> None:
        self._path = path
        self._swarm_id = f"hostile-{number}"
        self._chance = random.Random(seed)
        self._bus = Client(path, timeout=5.0)
        self._bus.register_profile(self._swarm_id, capabilities=["mixed:hostile"])
        described = self._bus.call("daemon.describe")["methods"]
        self._params = {
            method["name"]: [
                param["name"] for param in method["params"] if param["name"] != "method"
            ]  # `Plain.ask` has it
            for method in described
        }
        # Where it is the same user as the honest ones, acting for them is no abuse, and would only disturb the run.
        self._victim = _VICTIM if os.stat(path).st_uid != os.getuid() else self._swarm_id
        self._held: deque[socket.socket] = deque()
        self._attacks: Counter[str] = Counter()
        self._successes: list[str] = []
        self._upload()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.unload_swarm(self._swarm_id)
        self._bus.close()
        while self._held:
            self._held.popleft().close()

    def begin_phase(self) -> None:
        """Nothing changes for it."""

    def turn(self) -> None:
        """One attack."""
        attack = self._chance.choice(_ATTACKS)
        self._attacks[attack.__name__.strip("_")] += 1
        try:
            attack(self)
        except Internal as bug:
            self._successes.append(f"{attack.__name__} ran into a bug: {bug}")
        except (OSError, EOFError, IfbusError):
            pass  # closed, refused or throttled: what it deserves

    def result(self) -> dict[str, Any]:
        """How often it did what, and what it got away with."""
        return {"attacks": dict(self._attacks), "successes": self._successes}

    # --- bytes ---------------------------------------------------------------------------------------

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(_PATIENCE_S)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock

    def _hold(self, sock: socket.socket) -> None:
        # For a while: the oldest makes room.
        self._held.append(sock)
        while len(self._held) > _HELD:
            self._held.popleft().close()

    def _send_garbage(self) -> None:
        chance = self._chance
        data = chance.choice((*_GARBAGE, chance.randbytes(chance.randrange(1, 2000))))
        with self._connect() as sock:
            sock.sendall(data)
            sock.recv(65536)

    def _mutate_a_request(self) -> None:
        data = bytearray(
            packed(
                1, self._chance.choice(list(self._params)), [{"swarm_id": self._victim, "task_id": "T-1", "token": 1}]
            )
        )
        for _ in range(self._chance.randrange(1, 6)):
            data[self._chance.randrange(len(data))] = self._chance.randrange(256)
        with self._connect() as sock:
            sock.sendall(data)
            sock.recv(65536)

    def _leave_half_a_message(self) -> None:
        sock = self._connect()
        self._hold(sock)
        sock.sendall(self._chance.choice(_HALVES))

    def _never_read(self) -> None:
        sock = self._connect()
        self._hold(sock)
        sock.sendall(packed(1, "daemon.describe", []) * 200)

    def _come_and_go(self) -> None:
        for _ in range(50):
            self._connect().close()

    def _pass_descriptors(self) -> None:
        with self._connect() as sock, open("/dev/null", "rb") as null:
            socket.send_fds(sock, [packed(1, "daemon.ping", [])], [null.fileno()] * 100)
            sock.recv(65536)

    def _flood(self) -> None:
        with self._connect() as sock:
            sock.sendall(packed(1, "daemon.ping", []) * 2000)
            sock.recv(65536)

    def _storm_of_cancels(self) -> None:
        with self._connect() as sock:
            sock.sendall(packed(7, "coordinator.claim_next", [{"swarm_id": self._swarm_id, "wait_ms": 1000}]))
            sock.sendall(b"".join(msgpack.packb([2, "$/cancel", [n % 10]]) for n in range(500)))
            sock.recv(65536)

    # --- requests ------------------------------------------------------------------------------------

    def _ask_nonsense(self) -> None:
        method, names = self._chance.choice(list(self._params.items()))
        with Plain(self._connect()) as client:
            client.sock.settimeout(_PATIENCE_S)
            answer = client.ask(method, **{name: self._nonsense() for name in names if self._chance.random() < 0.8})
            if answer.code == Internal.code:
                self._successes.append(f"{method} ran into a bug: {answer.error}")

    def _nonsense(self) -> Any:
        chance = self._chance
        return chance.choice(
            (None, True, -1, 0, 2**63, 1.5, float("nan"), "", "x" * 1000, "\x00", self._victim, "T-1", "1e308", [], [[]], {}, b"\xff",
             {"a": 1}, chance.randrange(2**32), chance.random())
        )  # fmt: skip

    def _act_for_another(self) -> None:
        if self._victim == self._swarm_id:
            return
        method, params = self._chance.choice(
            (
                ("coordinator.read_inbox", {}),
                ("coordinator.claim_next", {}),
                ("coordinator.end_session", {"resume_token": "guessed"}),
                ("coordinator.register_swarm", {}),
                ("governor.track_cost", {"operation": "x", "usd": "1"}),
                ("governor.reserve_cost", {"operation": "x", "estimate_usd": "1"}),
                ("governor.trip_circuit_breaker", {"reason": "x"}),
                ("governor.set_budget", {"limit_usd": "0"}),
                ("chassis.execute_task", {"input": {}}),
            )
        )
        try:
            self._bus.call(method, swarm_id=_VICTIM, timeout=_PATIENCE_S, **params)
        except (Refused, RequestError):
            return
        self._successes.append(f"{method} for {_VICTIM} was done")

    def _desert(self) -> None:
        with Client(self._path, timeout=_PATIENCE_S) as bus:
            bus.call(
                "coordinator.register_swarm", swarm_id=self._swarm_id, capabilities=["mixed:hostile"], lease_ms=1000
            )

    # --- guests --------------------------------------------------------------------------------------

    def _upload(self) -> None:
        data = _GUEST.read_bytes()
        self._sha256 = hashlib.sha256(data).hexdigest()
        for at in range(0, len(data), CHUNK_BYTES):
            self._bus.put_blob(self._sha256, at, data[at : at + CHUNK_BYTES], len(data))

    def _run_a_guest(self) -> None:
        export = self._chance.choice(("spin", "devour", "crash"))
        limits = ResourceLimits(wall_ms=60, memory_bytes=4 << 20)
        contract = ServiceContract(module_sha256=self._sha256, kind="core", export=export, limits=limits)
        self._bus.load_swarm(self._swarm_id, contract)
        self._bus.execute_task(self._swarm_id, {"args": []})
        self._successes.append(f"the guest {export} ended well")


_ATTACKS: Final[tuple[Callable[[Hostile], None], ...]] = (
    Hostile._send_garbage,
    Hostile._mutate_a_request,
    Hostile._leave_half_a_message,
    Hostile._never_read,
    Hostile._come_and_go,
    Hostile._pass_descriptors,
    Hostile._flood,
    Hostile._storm_of_cancels,
    Hostile._ask_nonsense,
    Hostile._act_for_another,
    Hostile._desert,
    Hostile._run_a_guest,
)
