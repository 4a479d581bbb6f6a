"""Promise 10: whoever touches the record is found, given a receipt or an exported head; an honest record is never accused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw
import attrs
import pytest

from ifbus.errors import Unavailable
from ifbus.testing import daemon
from ifbusd.daemon import DATABASE
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.schema import register_checksums
from ifbusd.witness.offline import verify_file
from tests.integration.cli.shell import Shell
from tests.proof.plain import Plain
from tests.proof.records import Proof
from tests.proof.sizes import size

pytestmark = pytest.mark.slow

ENTRIES: Final = size(60, 400, 2_000)
# Copies are taken after so many entries each.
COPY_EVERY: Final = ENTRIES // 6


@attrs.frozen(kw_only=True)
class Record:
    """The record of a daemon that has stopped, and what its clients kept.

    Attributes:
        receipts: ``seq:hash`` of each entry, as the answers carried it; the last is also the head that was exported.
        copies: Earlier states of the directory, by the number of entries at the time.
    """

    directory: Path
    receipts: dict[int, str]
    copies: dict[int, Path]

    @property
    def newest(self) -> int:
        """Number of the last entry."""
        return max(self.receipts)


def _work(client: Plain, receipts: dict[int, str]) -> None:
    """A few operations, refused ones too; each leaves an entry."""
    answers = [client.call("coordinator.create_task", title="a task")]
    task_id = answers[0]["task"]["task_id"]
    answers.append(client.call("coordinator.claim_task", task_id=task_id, swarm_id="docs"))
    token = answers[1]["claim"]["token"]
    stale = client.ask("coordinator.complete_task", task_id=task_id, swarm_id="docs", token=token + 1)
    assert stale.error is not None
    answers += [
        stale.error["data"],
        client.call("governor.track_cost", swarm_id="docs", operation="llm", cost_usd="0.01"),
        client.call("coordinator.complete_task", task_id=task_id, swarm_id="docs", token=token),
    ]
    for answer in answers:
        receipt = answer["receipt"]
        receipts[receipt["seq"]] = f"{receipt['seq']}:{receipt['head']}"


def _written(directory: Path) -> Record:
    """A record that a real daemon wrote."""
    receipts: dict[int, str] = {}
    copies: dict[int, Path] = {}
    state = directory / "state"
    with daemon(state_dir=state) as running, Plain.at(running.socket) as client:
        first = client.call("coordinator.register_swarm", swarm_id="docs")["receipt"]
        receipts[first["seq"]] = f"{first['seq']}:{first['head']}"
        while len(receipts) < ENTRIES:
            _work(client, receipts)
            if max(receipts) // COPY_EVERY > len(copies):
                copy = directory / f"copy-{max(receipts)}"
                shutil.copytree(state, copy)
                copies[max(receipts)] = copy
        head = client.call("witness.head")
        assert receipts[head["seq"]] == f"{head['seq']}:{head['hash']}"
    assert sorted(receipts) == list(range(1, len(receipts) + 1))
    return Record(directory=state, receipts=receipts, copies=copies)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The one that all forgers work on, each on a copy of its own."""
    return _written(tmp_path_factory.mktemp("record"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Another record, as honest and at least as long."""
    return _written(tmp_path_factory.mktemp("stranger"))


# --- forging -------------------------------------------------------------------------------------------


class Forger:
    """Somebody who may write the files, knows the format and takes care to leave whole pages."""

    def __init__(self, directory: Path, record: Record, stranger: Record, chance: random.Random) -> None:
        self.directory = directory
        self.record = record
        self.stranger = stranger
        self.chance = chance
        self.last = record.newest

    @contextmanager
    def database(self) -> Iterator[apsw.Connection]:
        """The database, to be changed."""
        register_checksums()
        connection = apsw.Connection(str(self.directory / DATABASE), vfs="cksmvfs")
        try:
            yield connection
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            connection.close()

    def somewhere(self, first: int = 1) -> int:
        """The number of an entry that is not the last."""
        return self.chance.randrange(first, self.last)

    def change(self, sql: str, *values: Any) -> None:
        """Change the database by one statement."""
        with self.database() as database:
            database.execute(sql, values)
            assert database.changes() > 0, "nothing was forged"

    def replace_directory(self, other: Path) -> None:
        """Put another state in the place of this one."""
        shutil.rmtree(self.directory)
        shutil.copytree(other, self.directory)


def edits_the_content(forger: Forger) -> None:
    seq = forger.somewhere()
    with forger.database() as database:
        record = bytearray(database.execute("select record from log where seq = ?", (seq,)).get)
        record[forger.chance.randrange(len(record))] ^= 1 << forger.chance.randrange(8)
        database.execute("update log set record = ? where seq = ?", (bytes(record), seq))


def edits_the_time(forger: Forger) -> None:
    forger.change(
        "update log set at_ms = at_ms + ? where seq = ?", forger.chance.randrange(1, 10**6), forger.somewhere()
    )


def edits_the_revision(forger: Forger) -> None:
    forger.change(
        "update log set revision = revision + ? where seq = ?", forger.chance.choice((-1, 1)), forger.somewhere()
    )


def edits_the_hash(forger: Forger) -> None:
    forger.change("update log set hash = ? where seq = ?", forger.chance.randbytes(32), forger.somewhere())


def deletes_one(forger: Forger) -> None:
    forger.change("delete from log where seq = ?", forger.somewhere())


def deletes_some(forger: Forger) -> None:
    first = forger.somewhere()
    forger.change("delete from log where seq between ? and ?", first, forger.chance.randrange(first, forger.last))


def inserts_one(forger: Forger) -> None:
    seq = forger.somewhere()
    with forger.database() as database:
        database.execute("update log set seq = -seq - 1 where seq > ?", (seq,))
        database.execute("update log set seq = -seq where seq < 0")
        database.execute("insert into log select seq + 1, revision, at_ms, record, hash from log where seq = ?", (seq,))


def swaps_two(forger: Forger) -> None:
    one, other = forger.chance.sample(range(1, forger.last + 1), 2)
    with forger.database() as database:
        for old, new in ((one, -1), (other, one), (-1, other)):
            database.execute("update log set seq = ? where seq = ?", (new, old))


def cuts_off_the_end(forger: Forger) -> None:
    forger.change("delete from log where seq > ?", forger.somewhere())


def cuts_inside_an_entry(forger: Forger) -> None:
    seq = forger.somewhere()
    with forger.database() as database:
        length = database.execute("select length(record) from log where seq = ?", (seq,)).get
        keep = forger.chance.randrange(length)
        database.execute("update log set record = substr(record, 1, ?) where seq = ?", (keep, seq))


def puts_an_old_copy_back(forger: Forger) -> None:
    forger.replace_directory(
        forger.chance.choice([copy for at, copy in forger.record.copies.items() if at < forger.last])
    )


def computes_the_chain_anew(forger: Forger) -> None:
    edits_the_content(forger)
    with forger.database() as database:
        _chain(database)


def numbers_two_alike(forger: Forger) -> None:
    seq = forger.somewhere()
    with forger.database() as database:
        database.execute("alter table log rename to honest")
        database.execute("create table log (seq integer, revision integer, at_ms integer, record blob, hash blob)")
        database.execute("insert into log select * from honest union all select * from honest where seq = ?", (seq,))
        database.execute("drop table honest")


def replaces_all_of_it(forger: Forger) -> None:
    forger.replace_directory(forger.stranger.directory)


def _chain(database: apsw.Connection) -> None:
    previous = GENESIS
    rows: list[Any] = database.execute("select seq, revision, at_ms, record from log").fetchall()
    for seq, revision, at_ms, entry in rows:
        previous = entry_hash(previous, seq, revision, at_ms, entry)
        database.execute("update log set hash = ? where seq = ?", (previous, seq))


KINDS: Final[tuple[Callable[[Forger], None], ...]] = (
    edits_the_content,
    edits_the_time,
    edits_the_revision,
    edits_the_hash,
    deletes_one,
    deletes_some,
    inserts_one,
    swaps_two,
    cuts_off_the_end,
    cuts_inside_an_entry,
    puts_an_old_copy_back,
    computes_the_chain_anew,
    numbers_two_alike,
    replaces_all_of_it,
)
# Consistent in themselves: nothing but what somebody kept shows them, and the tool says so.
UNSEEN: Final = {cuts_off_the_end, puts_an_old_copy_back, computes_the_chain_anew, replaces_all_of_it}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_forgery_is_found(
    record: Record, stranger: Record, tmp_path: Path, proof: Proof, seed: int, kind: Callable[[Forger], None]
) -> None:
    """With the newest receipt or head each is found; without, it is found or named among what the check cannot know."""
    chance = random.Random(seed)
    ran, missed = size(15, 200, 5_000), list[str]()
    directory = tmp_path / "forged"
    for _ in range(ran):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(record.directory, directory)
        kind(Forger(directory, record, stranger, chance))
        with_receipt = verify_file(directory / DATABASE, receipt=record.receipts[record.newest])
        if with_receipt["ok"]:
            missed.append(f"with a receipt: {with_receipt}")
        alone = verify_file(directory / DATABASE)
        if kind not in UNSEEN and alone["ok"]:
            missed.append(f"without one: {alone}")
        if not any("cut off at the end" in sentence for sentence in alone["cannot_know"]):
            missed.append(f"claims to know: {alone['cannot_know']}")
    print(*missed[:5], sep="\n")
    name = f"record: {kind.__name__.replace('_', ' ')}"
    proof.cases(promise=10, name=name, ran=ran, violations=len(missed), seed=seed)


def test_what_an_old_receipt_proves(record: Record, stranger: Record, tmp_path: Path, proof: Proof) -> None:
    """The chain computed anew from an entry on is found by every receipt from there on; earlier ones say that they cannot know."""
    directory, missed = tmp_path / "forged", []
    shutil.copytree(record.directory, directory)
    forger = Forger(directory, record, stranger, random.Random(10))
    seq = record.newest // 2
    with forger.database() as database:
        database.execute("update log set at_ms = at_ms + 1 where seq = ?", (seq,))
        _chain(database)
    for number, receipt in record.receipts.items():
        answer = verify_file(directory / DATABASE, receipt=receipt[: len(f"{number}:") + 16])
        if answer["ok"] == (number >= seq):
            missed.append((number, answer))
        if number < record.newest and f"after {number} were replaced" not in str(answer["cannot_know"]):
            missed.append((number, answer["cannot_know"]))
    print(*missed[:5], sep="\n")
    proof.cases(promise=10, name="record: old receipts", ran=len(record.receipts), violations=len(missed))


def test_an_honest_record_is_never_accused(record: Record, tmp_path: Path, proof: Proof) -> None:
    """Stopped, copied while it ran, killed, and running: with none of its receipts there is a false alarm."""
    accused = [
        (seq, answer)
        for seq, receipt in record.receipts.items()
        if not (answer := verify_file(record.directory / DATABASE, receipt=receipt))["ok"]
    ]
    for at, copy in record.copies.items():
        answer = verify_file(copy / DATABASE, receipt=record.receipts[at])
        if not answer["ok"]:
            accused.append((at, answer))
    receipts = dict(record.receipts)
    state = tmp_path / "state"
    shutil.copytree(record.directory, state)
    with daemon(state_dir=state) as running:
        for _ in range(3):
            with Plain.at(running.socket) as client:
                _work(client, receipts)
            running.kill()
            answer = verify_file(state / DATABASE, receipt=receipts[max(receipts)])
            if not answer["ok"]:
                accused.append((max(receipts), answer))
            running.start()
        with Plain.at(running.socket) as client:
            online = [client.call("witness.verify", receipt=receipt) for receipt in list(receipts.values())[::5]]
        accused += [(answer["head"]["seq"], answer) for answer in online if not answer["ok"]]
        shell = Shell(running.socket)
        assert shell("witness", "verify", "--receipt", receipts[max(receipts)]).exit == 0
    print(*accused[:5], sep="\n")
    ran = len(record.receipts) + len(record.copies) + 3 + len(online)
    proof.cases(promise=10, name="record: false alarms", ran=ran, violations=len(accused))


@pytest.mark.parametrize("kind", [edits_the_content, deletes_one, cuts_off_the_end, puts_an_old_copy_back])
def test_a_daemon_that_starts_on_a_forgery(
    record: Record, stranger: Record, tmp_path: Path, kind: Callable[[Forger], None], seed: int
) -> None:
    """It refuses to start and names the file, or starts, and the command says what was touched: exit 8, with the entry."""
    state = tmp_path / "state"
    shutil.copytree(record.directory, state)
    kind(Forger(state, record, stranger, random.Random(seed)))
    receipt = record.receipts[record.newest]
    try:
        with daemon(state_dir=state) as running:
            ran, named = Shell(running.socket)("witness", "verify", "--receipt", receipt, "--json"), True
    except Unavailable as refused:
        named = DATABASE in refused.message
        ran = Shell(tmp_path / "nobody")("witness", "verify", "--state", str(state), "--receipt", receipt, "--json")
    assert named, "the refusal does not name the file"
    assert ran.exit == 8, ran
    verdict = json.loads(ran.out)["data"]
    assert verdict["problems"]
    assert not verdict["ok"]
