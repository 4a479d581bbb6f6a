"""What a disk does to files while the daemon is stopped, and what two daemons would do to one (promise 2)."""

from __future__ import annotations

import hashlib
import os
import posixpath
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

import ifbus.testing
from ifbus.errors import IfbusError, NotFound, Unavailable
from ifbusd.chassis import engine
from ifbusd.chassis.blobs import Blobs
from ifbusd.chassis.cache import CodeCache, CodeKey, Tampered, load_or_make_key
from ifbusd.daemon import DATABASE
from ifbusd.store.dirlock import lock_directory
from ifbusd.witness.offline import verify_file
from tests.proof.disk.day import Day, record_day
from tests.proof.disk.preload import Disk
from tests.proof.disk.recovery import Broken, Contents, Told, contents_of, scratch
from tests.proof.disk.wire import PATIENCE_S, Wire
from tests.proof.disk.workload import GUEST
from tests.proof.powerloss import Image, StrictDisk, place
from tests.proof.records import Proof
from tests.proof.sizes import size

pytestmark = pytest.mark.slow

FLIPS = size(500, 10_000, 100_000)
ROUNDS = size(10, 200, 2_000)
_LOG = f"{DATABASE}-wal"
_LOG_HEADER_BYTES = 32
_FRAME_BYTES = 24 + 4096
_SHOWN = 5
# The last commit cannot be told from one that was cut off, nor, if the end of the one before it is hit, can that.
_LAST_COMMITS = 2


@pytest.fixture
def disks() -> Iterator[Path]:
    """A place for disks."""
    with scratch() as directory:
        yield directory


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """A recorded day."""
    return record_day(tmp_path_factory.mktemp("day"))


def _killed(day: Day) -> tuple[Image, str]:
    """What a kill would have left when most commits were in the write-ahead log and a module was loaded, and the last receipt."""
    disk = StrictDisk()
    loaded_at = next(one.at for one in day.said if one.method == "chassis.load_swarm")
    told = {at: f"{seq}:{head}" for at, seq, head in Told.by(day.said, uid=os.getuid()).heads if at >= loaded_at}
    best: tuple[int, Image, str] = (0, {}, "")
    for at, event in enumerate(day.events):
        disk.apply(event)
        if at in told:
            image = disk.kept()
            best = max(best, (len(_commits(image[_LOG] or b"")), image, told[at]), key=lambda one: one[0])
    return best[1], best[2]


def _commits(log: bytes) -> list[int]:
    """Where in the write-ahead log a commit of its present round ends."""
    frames = range(_LOG_HEADER_BYTES, len(log), _FRAME_BYTES)
    return [at + _FRAME_BYTES for at in frames if log[at + 8 : at + 16] == log[16:24] and any(log[at + 4 : at + 8])]


@attrs.frozen(kw_only=True)
class Found:
    """What the daemon's code finds in a state directory.

    Attributes:
        contents: Of the store; None if it does not open.
        upload: Bytes of the module; None if they are refused.
        code: Bytes of its compiled code; None if they are refused, so that it is compiled again.
        named: Files that a refusal, or `ifbus witness verify --state`, named.
    """

    contents: Contents | None
    upload: bytes | None
    code: bytes | None
    named: str


async def _find(image: Image, directory: Path, module: CodeKey, receipt: str) -> Found:
    contents = upload = code = None
    named = []
    with tempfile.TemporaryDirectory(dir=directory) as name:
        state_dir = Path(name)
        place(image, state_dir)
        report = verify_file(state_dir / DATABASE, receipt=receipt)
        # What the receipt alone shows is that something was lost, not where.
        named += [f"{DATABASE}: {problem['what']}" for problem in report["problems"]]
        try:
            with lock_directory(state_dir):
                contents = await contents_of(state_dir)
        except (IfbusError, Broken) as error:
            named.append(str(error))
        blobs = Blobs(state_dir / "blobs", bytes_per_uid=1 << 30, bytes_in_all=1 << 30)
        blobs.prepare()
        try:
            upload = _read(blobs.open(os.getuid(), module.module_sha256))
        except NotFound as error:
            named.append(str(error))
        cache = CodeCache(state_dir / "code", load_or_make_key(state_dir / "cache.key"), max_bytes=1 << 30)
        cache.prepare()
        try:
            memory = cache.load(module)
            code = None if memory is None else _read(memory)
        except Tampered as error:
            named.append(str(error))
    return Found(contents=contents, upload=upload, code=code, named="; ".join(named))


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _wrong(name: str, found: Found, right: Found) -> str:
    """Which answer a flipped bit in the file `name` made wrong without a word, if any."""
    for what, answer, expected in (
        ("store", found.contents, right.contents),
        ("upload", found.upload, right.upload),
        ("code", found.code, right.code),
    ):
        if answer == expected or (answer is None and posixpath.basename(name).split("-")[0] in found.named):
            continue
        # The key's own damage shows in what it cannot vouch for.
        if what == "code" and answer is None and name == "cache.key":
            continue
        if what == "store" and DATABASE in found.named:
            continue  # opened all the same: what the last commit held is known to be lost by the receipt alone
        return what
    return ""


def _flip(image: Image, rng: random.Random) -> tuple[str, Image]:
    name, content = rng.choice([(name, content) for name, content in image.items() if content])
    damaged = bytearray(content)
    bit = rng.randrange(len(damaged) * 8)
    damaged[bit // 8] ^= 1 << bit % 8
    return name, {**image, name: bytes(damaged)}


@pytest.mark.parametrize("after", ["stop", "kill"])
async def test_a_flipped_bit_is_no_wrong_answer(day: Day, disks: Path, seed: int, proof: Proof, after: str) -> None:
    """A bit that flips in any file while the daemon is stopped changes no answer: the file is named, or it does not matter."""
    rng = random.Random(seed)
    if after == "stop":
        _, seq, head = Told.by(day.said, uid=os.getuid()).heads[-1]
        image, receipt = day.final(), f"{seq}:{head}"
    else:
        image, receipt = _killed(day)
    module = CodeKey(
        module_sha256=hashlib.sha256(GUEST.read_bytes()).hexdigest(), kind="core", engine=engine.fingerprint()
    )
    right = await _find(image, disks, module, receipt)
    assert right.named == ""
    assert right.contents is not None
    assert right.upload == GUEST.read_bytes()
    assert right.code is not None
    outcomes: Counter[str] = Counter()
    problems = []
    for _ in range(FLIPS // 2):
        name, damaged = _flip(image, rng)
        found = await _find(damaged, disks, module, receipt)
        wrong = _wrong(name, found, right)
        outcomes[f"{name}: {wrong or ('named' if found.named else 'no matter')}"] += 1
        if wrong:
            problems.append(f"{name} makes a wrong {wrong}: {found.named}")
    print(*sorted(outcomes.items()), *problems[:_SHOWN], sep="\n")
    proof.cases(promise=2, name=f"flipped bits after a {after}", ran=FLIPS // 2, violations=len(problems), seed=seed)


async def test_a_flipped_bit_hides_no_commits(day: Day, disks: Path, seed: int, proof: Proof) -> None:
    """A bit that flips in the write-ahead log that a kill left never takes whole commits with it in silence: the log is named."""
    rng = random.Random(seed)
    image, _ = _killed(day)
    log = image[_LOG]
    assert log is not None
    commits = _commits(log)
    assert len(commits) > 2 * _LAST_COMMITS
    least = await _open({**image, _LOG: log[: commits[-1 - _LAST_COMMITS]]}, disks)
    assert isinstance(least, Contents)
    silent = 0
    for _ in range(FLIPS // 2):
        damaged = bytearray(log)
        bit = rng.randrange(len(log) * 8)
        damaged[bit // 8] ^= 1 << bit % 8
        found = await _open({**image, _LOG: bytes(damaged)}, disks)
        if isinstance(found, str):
            assert _LOG in found
        elif len(found.log) < len(least.log):
            silent += 1
    proof.cases(promise=2, name="flipped bits in the log", ran=FLIPS // 2, violations=silent, seed=seed)


async def _open(image: Image, directory: Path) -> Contents | str:
    with tempfile.TemporaryDirectory(dir=directory) as name:
        place(image, Path(name))
        try:
            return await contents_of(Path(name))
        except IfbusError as error:
            return str(error)


def test_of_two_daemons_one_serves(tmp_path: Path, proof: Proof) -> None:
    """Two daemons that start on one state directory at the same moment: one serves, the other names its process and ends."""
    problems = []
    for number in range(ROUNDS):
        with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
            started = list(pool.map(lambda _: _start(tmp_path / "state"), range(2)))
            daemons = [one for one in started if not isinstance(one, str)]
            refusals = [one for one in started if isinstance(one, str)]
            for daemon in daemons:
                stack.callback(daemon.close)
            if len(daemons) != 1:
                problems.append(f"round {number}: {len(daemons)} serve")
            elif f"the ifbusd with process id {daemons[0].pid} uses it" not in refusals[0]:
                problems.append(f"round {number}: {daemons[0].pid} serves, the other says: {refusals[0][-300:]}")
    print(*problems[:_SHOWN], sep="\n")
    proof.cases(promise=2, name="two daemons on one directory", ran=ROUNDS, violations=len(problems))


class _Serving:
    """A daemon that serves, until it is closed."""

    def __init__(self, stack: ExitStack, pid: int) -> None:
        self._stack = stack
        self.pid = pid

    def close(self) -> None:
        self._stack.close()


def _start(state_dir: Path) -> _Serving | str:
    """A daemon that answers, or what it said when it ended instead."""
    stack = ExitStack()
    try:
        daemon = stack.enter_context(ifbus.testing.daemon(state_dir=state_dir))
        wire = stack.enter_context(Wire(daemon.socket))
        assert wire.ask("daemon.hello")["pid"] == daemon.pid
    except Unavailable as error:
        return error.message
    return _Serving(stack, daemon.pid)


@pytest.mark.parametrize("call", [2, 3], ids=["before the old pid goes", "before the new pid comes"])
def test_the_holder_is_named_while_it_starts(tmp_path: Path, call: int) -> None:
    """Who comes second in the moment in which the first has the lock and has not written its pid yet hears the right one."""
    (tmp_path / "state").mkdir()
    # What an earlier daemon left.
    (tmp_path / "state" / "ifbusd.lock").write_text("1\n")
    disk = Disk(tmp_path / "state", tmp_path / "watch")
    disk.control.stop_at = call  # the first is to make the directory
    command = [sys.executable, "-m", "ifbusd", "--dev", "--state", str(disk.state_dir), "--socket"]
    first = subprocess.Popen(
        [*command, str(tmp_path / "a")], env={**os.environ, **disk.environ}, stdout=subprocess.DEVNULL
    )
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        second = subprocess.run([*command, str(tmp_path / "b")], capture_output=True, text=True, timeout=PATIENCE_S)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert f"the ifbusd with process id {first.pid} uses it" in second.stderr
