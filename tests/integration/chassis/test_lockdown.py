"""What native code in a worker can still do, as if a guest had escaped from wasm; and what guests themselves can reach."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.chassis.harness import Harness
from tests.integration.chassis.native_probes import BY_LANDLOCK, LAYERS, UNFILTERED, probes

PROBES = sorted(probes("/x"))
# What nothing but the system call filter stops; every other attempt meets a second layer.
FILTER_ALONE = {
    "stat a file",
    "read a link",
    "map executable memory",
    "make memory executable",
    "map shared memory",
    "make a user namespace",
    "pass a descriptor",
    "receive a descriptor",
    "undo the parent's death",
    "use a key ring",
    "use the x32 table",
}
# Without own users for workers (the daemon is not root), these too.
FILTER_ALONE_SAME_USER = {"change a file's mode"}

Outcomes = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Every attempt under every layer, and with each layer off alone."""
    path = tmp_path_factory.mktemp("socket") / "ifbusd.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(str(path))
        listener.listen(64)
        abstract.bind(f"\0{path}")
        abstract.listen(64)
        script = Path(__file__).with_name("native_probes.py")
        run = subprocess.run([sys.executable, script, path], capture_output=True, check=True, timeout=60)
    answer: Outcomes = json.loads(run.stdout)
    return answer


@pytest.mark.parametrize("probe", PROBES)
def test_native_code_is_killed_for_it(outcomes: Outcomes, probe: str) -> None:
    """Each attempt ends the process by SIGSYS, whichever one of the other layers is missing."""
    assert {layer: outcomes[probe][layer] for layer in ("nothing", *LAYERS) if layer != "seccomp"} == {
        "nothing": "SIGSYS",
        "rlimits": "SIGSYS",
        "uid": "SIGSYS",
        "landlock": "SIGSYS",
    }


@pytest.mark.parametrize("probe", PROBES)
def test_other_layers_hold_without_the_filter(outcomes: Outcomes, probe: str) -> None:
    """With the system call filter off, rlimits, Landlock and the own user still refuse what they are there for."""
    known = FILTER_ALONE if os.geteuid() == 0 else FILTER_ALONE | FILTER_ALONE_SAME_USER
    assert outcomes[probe]["seccomp"] != "allowed" or probe in known


@pytest.mark.parametrize("probe", BY_LANDLOCK)
def test_landlock_holds_alone(outcomes: Outcomes, probe: str) -> None:
    """Without a filter, a user of its own and a limit on descriptors, Landlock still refuses files, programs and whatever leads out."""
    assert outcomes[probe][UNFILTERED] == BY_LANDLOCK[probe]


async def test_worker_holds_only_what_it_needs(chassis: Harness) -> None:
    """Seen from outside, a worker has its socket, its sealed code, one thread, no privileges and the daemon as parent."""
    await chassis.load("core", export="add")
    await chassis.run(1, 1)
    process = Path(f"/proc/{chassis.worker_pid()}")
    links = sorted(os.readlink(link).partition(":")[0].partition(" ")[0] for link in (process / "fd").iterdir())
    assert links == ["/memfd", "socket"]
    assert len(list((process / "task").iterdir())) == 1
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"], status["PPid"]) == ("1", "2", str(os.getpid()))
    if os.geteuid() == 0:
        assert int(status["CapEff"], 16) == 0
        assert int(status["Uid"].split()[0]) >= 0x7FFE_0000
    limits = (process / "limits").read_text()
    assert [line.split()[-3:-1] for line in limits.splitlines() if "open files" in line] == [["0", "0"]]


async def test_report_names_the_layers(chassis: Harness) -> None:
    """Loading answers with what locks the worker down."""
    answer = await chassis.load("core", export="add")
    assert {"rlimits", "no_new_privs", "seccomp"} < set(answer["layers"])
    assert any(layer.startswith("landlock-") for layer in answer["layers"])


async def test_workers_have_users_of_their_own(chassis: Harness) -> None:
    """Where the daemon can give users away, no two sandboxes share one."""
    if os.geteuid() != 0:
        pytest.skip("the daemon is not root: sandboxes keep its user")
    await chassis.load("core", swarm="a", export="add")
    await chassis.load("core", swarm="b", export="add")
    users = {os.stat(f"/proc/{chassis.worker_pid(swarm)}").st_uid for swarm in "ab"}
    assert len(users) == 2


@pytest.mark.parametrize("wanted", ["read", "write", "list", "stat", "descriptor", "environment", "random"])
async def test_command_reaches_nothing_of_the_host(chassis: Harness, wanted: str) -> None:
    """No file, directory, descriptor, variable or huge request for randomness is there for a guest."""
    await chassis.load("probe", kind="command", memory_bytes=256 << 20)
    answer = await chassis.execute({"try": wanted})
    assert answer["output"][wanted] is False


def test_zygote_loads_no_more_than_it_needs() -> None:
    """The process that workers are copies of has no event loop, store, network library or key reader in it."""
    code = (
        "import sys; import ifbusd.chassis.zygote; "
        "print(*sorted({'trio', 'grpc', 'apsw', 'sqlite3', 'nats', 'asyncio', 'ssl', 'structlog',"
        " 'ifbusd.chassis.cache', 'ifbusd.chassis.service', 'ifbusd.config'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, text=True)
    assert run.stdout.split() == []


async def test_zygote_sees_nothing_of_the_environment(chassis: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what finds an interpreter and its libraries is handed on; secrets in variables stay with the daemon."""
    pid = chassis.chassis._supervisor.zygote_pid
    names = {item.partition("=")[0] for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if item}
    assert names <= {"PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LC_CTYPE"}
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
