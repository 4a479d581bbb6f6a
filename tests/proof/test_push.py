"""Promise 3: nothing pushed is lost, whoever is killed or away (DESIGN 2)."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.proof import history
from tests.proof.crowd import PATIENCE_S, Client, Crowd, crowd, rounds, wait_until
from tests.proof.history import Outcome
from tests.proof.records import Proof
from tests.proof.sizes import size

SENDERS: Final = 4
# Of a round. Most go to all readers, one in ten is a task for one of them.
LETTERS: Final = 1_060
DISTURBANCES: Final = 16
MOST_AWAY_S: Final = size(1, 20, 60)
READERS: Final = ["reader", "raw-reader"]
# Who sends the last letter.
END: Final = "end"
# A letter as a reader noted it: its seq, who sent it, and the sender's number.
Letter = tuple[int, str, int]


class Reader:
    """A swarm that reads its inbox, whose process comes and goes. The mutable state is the process, or when the next one comes."""

    def __init__(self, among: Crowd, swarm_id: str) -> None:
        self.swarm_id = swarm_id
        self._among = among
        self._path = among.directory / f"{swarm_id}.letters"
        self._process: Client | None = None
        self._back_at = 0.0

    @property
    def letters(self) -> list[Letter]:
        """What it has noted, in its order; a line that a kill cut short was not noted."""
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]

    def come(self) -> None:
        """Be there, if the time has come; it goes on after the last letter that it noted."""
        if self._process is None and time.monotonic() >= self._back_at:
            noted = self.letters
            self._process = self._among.start(
                "listen",
                letters=str(self._path),
                swarm_id=self.swarm_id,
                after_seq=noted[-1][0] if noted else 0,
                raw=self.swarm_id.startswith("raw"),
            )

    def go(self, away_s: float) -> None:
        """Be killed, and away for so long."""
        if self._process is not None:
            self._process.kill()
            self._process, self._back_at = None, time.monotonic() + away_s

    def leave(self) -> None:
        """End as a program does that has read enough."""
        assert self._process is not None
        self._process.say("enough")
        self._process.finish()


@pytest.mark.slow
def test_letters(tmp_path: Path, proof: Proof, seed: int) -> None:
    """Each letter arrives once, in its sender's order, though the daemon and the readers are killed between store and delivery."""
    ran = 0
    wrong: list[str] = []
    for directory, rng in rounds(tmp_path, seed, size(1, 50, 500)):
        with crowd(directory) as among:
            readers = _correspond(among, rng)
        for reader in readers:
            acknowledged, unknown = _sent(directory, reader.swarm_id)
            ran += len(acknowledged)
            letters = [letter for letter in reader.letters if letter[1] != END]
            wrong += _wrong(letters, acknowledged, unknown)
    print(*wrong, sep="\n")
    proof.cases(promise=3, name="letters", ran=ran, violations=len(wrong), seed=seed)


def _correspond(among: Crowd, rng: random.Random) -> list[Reader]:
    """Have letters sent, and whoever is in between killed; the readers, once they have all that they will ever get."""
    with among.daemon.client() as bus:
        for name in READERS:
            bus.call("governor.register_profile", swarm_id=name, capabilities=["letters:read"])
    readers = [Reader(among, name) for name in READERS]
    senders = [
        among.start(
            "send",
            history=str(among.history()),
            counters=str(among.counters_path),
            number=n,
            name=f"sender-{n}",
            letters=LETTERS // SENDERS,
            readers=READERS,
        )
        for n in range(SENDERS)
    ]
    for number in range(DISTURBANCES):
        due = LETTERS * (number + 1) // (DISTURBANCES + 2)
        _wait(readers, lambda due=due: among.counters.sum() >= due)  # type: ignore[misc]
        if rng.random() < 0.4:
            among.restart()
        else:
            rng.choice(readers).go(rng.uniform(0.1, MOST_AWAY_S))
    for client in senders:
        client.finish()
    with among.daemon.client() as bus:
        bus.call("coordinator.broadcast", "letter", {"from": END, "n": 0}, ["letters:read"])
    # Letters come in order, so what is not there before the last one never comes.
    _wait(readers, lambda: all(END in {name for _, name, _ in reader.letters} for reader in readers))
    for reader in readers:
        reader.leave()
    return readers


def _wait(readers: list[Reader], condition: Callable[[], bool]) -> None:
    def look() -> bool:
        for reader in readers:
            reader.come()
        return condition()

    wait_until(look, patience_s=PATIENCE_S + MOST_AWAY_S)


def _sent(directory: Path, reader: str) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """What was sent to a reader by sender and number: acknowledged, and of unknown outcome."""
    sent: dict[Outcome, set[tuple[str, int]]] = {outcome: set() for outcome in Outcome}
    for operation in history.read_all(directory):
        if operation.kind == "broadcast" or operation.about.get("reader") == reader:
            sent[operation.outcome].add((operation.client, operation.about["n"]))
    assert not sent[Outcome.REFUSED]
    return sent[Outcome.OK], sent[Outcome.UNKNOWN]


def _wrong(letters: list[Letter], acknowledged: set[tuple[str, int]], unknown: set[tuple[str, int]]) -> Iterator[str]:
    """What is wrong with the letters that a reader noted: lost, invented, come twice, or out of order."""
    noted = Counter((name, n) for _, name, n in letters)
    yield from (f"{letter} was lost" for letter in acknowledged - noted.keys())
    yield from (f"{letter} was never sent" for letter in noted.keys() - acknowledged - unknown)
    yield from (f"{letter} came {count} times" for letter, count in noted.items() if count > 1)
    yield from (f"seq {after[0]} came after {before[0]}" for before, after in pairwise(letters) if after <= before)
    by_sender: dict[str, list[int]] = defaultdict(list)
    for _, name, n in letters:
        by_sender[name].append(n)
    yield from (f"{name}'s letters came as {ns}" for name, ns in by_sender.items() if ns != sorted(ns))
