"""Promise 11: every "no" says why. Each place in the code that refuses is made to, and its answer held against the registry."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from ifbus import reasons
from ifbus.errors import BY_CODE, IfbusError, Refused
from ifbus.reasons import REASONS
from ifbus.testing import daemon
from tests.integration.cli.shell import Shell
from tests.proof.plain import Plain
from tests.proof.raise_sites import ROOT, Site, sites
from tests.proof.records import Proof
from tests.proof.refusals import CASES, ROOMY, SLOW, SLOW_CASES, TIGHT, TIGHT_CASES, Case, World, world

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")

# Refusals that no client can bring about, or that another proof brings about; by file and the beginning of what is said.
_CHECKED_BEFORE: Final = "the wire's own check of the type refuses it first"
_ELSEWHERE: Final = "brought about in tests/proof/test_bounded.py, without descriptors"
_DISK: Final = "brought about where disks fail: tests/proof/test_disk.py, tests/integration/store"
_HOST: Final = "this host would have to be broken"
_ETCD: Final = "brought about with a real etcd: tests/integration/store"
_RACE: Final = "takes a change by somebody else within a transaction"
EXCUSED: Final[dict[tuple[str, str], str]] = {
    (
        "client/ifbus/protocol.py",
        "cannot send ",
    ): "a client finds it in what it was given, and sends nothing",
    ("client/ifbus/protocol.py", "cannot send a message"): "every service keeps its answers within a message",
    ("ifbusd/chassis/compiler.py", "cannot compile safely"): _HOST,
    ("ifbusd/chassis/compiler.py", "cannot compile module"): "takes as many compile bombs at once as may wait",
    ("ifbusd/chassis/processes.py", "cannot start"): _ELSEWHERE,
    ("ifbusd/chassis/supervisor.py", "cannot start"): _ELSEWHERE,
    ("ifbusd/chassis/rules.py", "cannot load the module: limits"): "reading the contract refuses it first",
    ("ifbusd/chassis/sandbox.py", ""): "the words are its callers'",
    ("ifbusd/chassis/service.py", "cannot store a chunk: "): _CHECKED_BEFORE,
    ("ifbusd/chassis/service.py", "cannot start a sandbox: the engine"): _HOST,
    ("ifbusd/chassis/service.py", "cannot start a sandbox: its process"): _HOST,
    ("ifbusd/chassis/service.py", "cannot run guests safely"): _HOST,
    ("ifbusd/chassis/service.py", "cannot use the chassis"): "clients are let in when it has started",
    ("ifbusd/chassis/service.py", "the outcome is unknown"): _DISK,
    ("ifbusd/chassis/service.py", ""): _DISK,
    ("ifbusd/coordinator/holder.py", "cannot act on "): "an earlier incarnation's claim ends within the registration",
    ("ifbusd/coordinator/rules.py", "cannot renew "): _RACE,
    ("ifbusd/coordinator/rules.py", "cannot act on "): "takes an act between a deadline and its record",
    (
        "ifbusd/coordinator/life/rules.py",
        "cannot claim ",
    ): "takes a claim between a deadline, or a loss, and its record",
    (
        "ifbusd/coordinator/board.py",
        "cannot read what is newest",
    ): "takes a watch that stalls: tests/integration/cluster/test_two_daemons.py",
    ("ifbusd/coordinator/numbers.py", "cannot number a task"): _RACE,
    ("ifbusd/coordinator/bindings.py", "cannot bind anything without"): "every client has a connection",
    ("ifbusd/coordinator/inbox.py", "cannot subscribe without"): "every client has a connection",
    ("ifbusd/processes.py", "cannot bind: this kernel"): _HOST,
    ("ifbusd/processes.py", "cannot bind: the daemon's"): _ELSEWHERE,
    ("ifbusd/rpc/daemon_methods.py", "cannot take a descriptor without"): "every client has a connection",
    ("ifbusd/governor/service.py", "cannot listen for escalations without"): "every client has a connection",
    ("ifbusd/governor/service.py", "cannot "): "the wire refuses who has not the role",
    ("ifbusd/governor/service.py", "similarity is"): _CHECKED_BEFORE,
    ("ifbusd/governor/service.py", ""): _CHECKED_BEFORE,
    ("ifbusd/optimise/service.py", "by is one of"): _CHECKED_BEFORE,
    ("ifbusd/operation.py", "cannot do "): _RACE,
    ("ifbusd/rpc/connection.py", "cannot do "): "out of descriptors, as above; or a bug, which would be mended instead",
    ("ifbusd/rpc/server.py", "cannot take another connection: the daemon is out"): _ELSEWHERE,
    ("ifbusd/store/embedded.py", ""): _DISK,
    ("ifbusd/store/etcd/cluster.py", "cannot use etcd"): _ETCD,
    ("ifbusd/store/etcd/commits.py", "cannot commit"): _ETCD,
    ("ifbusd/store/etcd/faults.py", "cannot "): _ETCD,
    ("ifbusd/store/etcd/records.py", ""): _ETCD,
    ("ifbusd/store/etcd/records.py", "cannot "): _ETCD,
    ("ifbusd/store/etcd/store.py", ""): _ETCD,
    ("ifbusd/store/embedded.py", "cannot grant a lease"): "each user's own bound comes first",
    ("ifbusd/store/watches.py", ""): _DISK,
}
# Made by `ifbusd.governor.rules.Check.error`, whose class is a value.
BY_CHECK: Final = {"not_qualified", "budget_exceeded", "breaker_tripped"}


class Met(NamedTuple):
    """A refusal that was brought about: how, the error, and whether following its advice turned the answer, if that is known."""

    name: str
    error: dict[str, Any]
    turned: bool | None


def _meet(people: World, cases: list[Case]) -> Iterator[Met]:
    for case in cases:
        told: Any = case(people)
        if inspect.isgenerator(told):
            error, turned = next(told), False
            # A step of the advice was refused itself, or there is no advice.
            with contextlib.suppress(AssertionError, LookupError):
                turned = next(told)
            told.close()
            yield Met(case.__name__, error, turned)
        else:
            yield Met(case.__name__, told, None)


@pytest.fixture(scope="module")
def met() -> list[Met]:
    """All of them, each brought about once on a real daemon."""
    found: list[Met] = []
    for more, cases in ((ROOMY, CASES), (SLOW, SLOW_CASES), (TIGHT, TIGHT_CASES)):
        with world(more) as people:
            found += _meet(people, cases)
    return found


def test_the_page_is_fresh() -> None:
    """docs/reasons.md is the registry: `python -m ifbus.reasons docs/reasons.md`."""
    assert (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8") == reasons.markdown()


def test_the_registry_has_what_the_code_raises(proof: Proof) -> None:
    """Each place in the code that refuses is of a registered code, with its figures and no others; a refusal names what would turn it."""
    found = sites()
    wrong = []
    for site in found:
        reason = REASONS.get(site.code)
        if reason is None:
            wrong.append(f"{site}: no such reason")
            continue
        if beyond := site.figures - {*reason.figures, *reason.also}:
            wrong.append(f"{site}: figures {beyond} are not registered")
        if site.is_whole and (missing := set(reason.figures) - site.figures):
            wrong.append(f"{site}: without {missing}")
        if issubclass(BY_CODE[site.code], Refused) and not site.names_change:
            wrong.append(f"{site}: does not say what would change it")
    print(*wrong, sep="\n")
    proof.cases(promise=11, name="places that refuse", ran=len(found), violations=len(wrong))


@needs_root
def test_every_refusal_is_met(met: list[Met], proof: Proof) -> None:
    """Each place in the code that refuses has refused a client, or is excused with a reason; no excuse outlives its place."""
    found = sites()
    reached: set[Site] = set()
    unknown = []
    for one in met:
        possible = [site for site in found if site.made(one.error)]
        if not possible and one.error["code"] not in BY_CHECK:
            unknown.append(one)
        said = [site for site in possible if site.says is not None] or possible
        most = max((_weight(site) for site in said), default=0)
        reached.update(site for site in said if _weight(site) == most)
    used = {key for key in EXCUSED for site in found if _is_excused(key, site)}
    never = [site for site in found if site not in reached and not any(_is_excused(key, site) for key in EXCUSED)]
    print(*unknown, *map(str, never), sep="\n")
    proof.cases(promise=11, name="refusals met", ran=len(reached), violations=len(unknown) + len(never))
    assert used == set(EXCUSED)


def _weight(site: Site) -> int:
    return 100 * len(site.figures) + (len(site.says.pattern) if site.says else 0)


def _is_excused(key: tuple[str, str], site: Site) -> bool:
    file, beginning = key
    if site.file != file:
        return False
    literal = site.says.pattern.replace("\\", "").split(".*")[0] if site.says else ""
    return literal.startswith(beginning) if beginning else not literal


@needs_root
def test_every_refusal_is_as_registered(met: list[Met], proof: Proof) -> None:
    """On the wire each has a registered code, a sentence, its figures and no others; a refusal says who could turn it, and how."""
    wrong = [f"{one.name}: {problem}: {one.error}" for one in met for problem in _problems(one.error)]
    print(*wrong, sep="\n")
    proof.cases(promise=11, name="refusals as registered", ran=len(met), violations=len(wrong))


def _problems(error: dict[str, Any]) -> Iterator[str]:
    reason = REASONS.get(error["code"])
    if reason is None or not error["message"] or set(error) != {"code", "message", "data"}:
        yield "not registered, or no error"
        return
    data = error["data"]
    changes = data.get("would_change", [])
    if missing := set(reason.figures) - data.keys():
        yield f"without {missing}"
    if beyond := data.keys() - {*reason.figures, *reason.also, "receipt", "would_change"}:
        yield f"with {beyond}"
    if issubclass(BY_CODE[error["code"]], Refused) and not changes:
        yield "does not say what would change it"
    for change in changes:
        if change["by"] not in reason.turned_by or not change["what"] or change.keys() - {"by", "what", "call"}:
            yield f"odd change {change}"
    json.dumps(error)


@needs_root
def test_advice_turns_the_answer(met: list[Met], proof: Proof) -> None:
    """Whoever does what the figures or `would_change` say gets another answer, in every case that a program can follow."""
    followed = [one for one in met if one.turned is not None]
    in_vain = [one for one in followed if not one.turned]
    print(*in_vain, sep="\n")
    assert len({one.error["code"] for one in followed}) >= 12
    proof.cases(promise=11, name="advice", ran=len(followed), violations=len(in_vain))


# --- why, and attention --------------------------------------------------------------------------------


CHECKS: Final = ["owner", "free", "ready", "open", "breaker", "match", "budget"]


def test_why_shows_every_check_in_order(proof: Proof) -> None:
    """For each way in which an admission can fail, `why` shows all checks in the order of the admission, and the claim's own words."""
    with daemon() as running, Plain.at(running.socket) as client:
        shell = Shell(running.socket)
        client.call("coordinator.register_swarm", swarm_id="broke", capabilities=["docs:writing"], budget_usd="0.01")
        client.call("coordinator.register_swarm", swarm_id="other", capabilities=["a:b"])
        client.call("coordinator.register_swarm", swarm_id="fine", capabilities=["docs:writing"])
        client.call("coordinator.register_swarm", swarm_id="stopped", capabilities=["docs:writing"])
        client.call("governor.trip_circuit_breaker", swarm_id="stopped", reason="enough")
        fields = {"capabilities": ["docs:writing"], "estimate_usd": "1"}
        ready = client.call("coordinator.create_task", title="a", **fields)["task"]["task_id"]
        waiting = client.call("coordinator.create_task", title="b", depends_on=[ready], **fields)["task"]["task_id"]
        wrong: list[Any] = []
        for task_id in (ready, waiting):
            for swarm_id in ("fine", "broke", "other", "stopped"):
                explained = client.call("coordinator.explain_claim", task_id=task_id, swarm_id=swarm_id)
                failed = [check for check in explained["checks"] if not check["ok"]]
                if [check["check"] for check in explained["checks"]] != CHECKS:
                    wrong.append((task_id, swarm_id, explained))
                if explained["would_succeed"] == bool(failed):
                    wrong.append((task_id, swarm_id, "the verdict is not that of the checks"))
                if any(not check["would_change"] or not check["data"] for check in failed):
                    wrong.append((task_id, swarm_id, "a check that fails does not say what would turn it"))
                said = shell("why", task_id, "--swarm", swarm_id)
                places = [said.out.find(check["check"]) for check in explained["checks"]]
                if said.exit != (3 if failed else 0) or -1 in places:
                    wrong.append((task_id, swarm_id, said))
                if failed:
                    answer = client.ask("coordinator.claim_task", task_id=task_id, swarm_id=swarm_id)
                    assert answer.error is not None
                    if answer.error["message"] != failed[0]["message"]:
                        wrong.append((answer.error, failed[0]))
        print(*wrong, sep="\n")
        proof.cases(promise=11, name="why", ran=8, violations=len(wrong))


def test_attention_is_the_same_everywhere(tmp_path: Path) -> None:
    """What a swarm must hear comes as the same items in a notification and in --json, and as the same words in text; refusals have it, too."""
    with daemon() as running, Plain.at(running.socket) as client:
        client.call("coordinator.register_swarm", swarm_id="me", budget_usd="1")
        held, other = (client.call("coordinator.create_task", title="x")["task"]["task_id"] for _ in range(2))
        claim = client.call("coordinator.claim_task", task_id=held, swarm_id="me")["claim"]
        client.call("coordinator.push_task_to_swarm", task_id=other, swarm_id="me")
        shell = Shell(running.socket).as_swarm("me")
        for spend, first in (("0", []), ("0.9", ["budget_low"]), ("0.2", ["breaker_tripped"])):
            client.call("governor.track_cost", swarm_id="me", operation="llm", cost_usd=spend)
            with Plain.at(running.socket) as listener:
                listener.call("daemon.hello", swarm="me")
                notified = [item for method, params in listener.heard if method == "attention" for item in params[0]]
            assert [item["kind"] for item in notified] == [*first, "holding", "mail"]
            assert notified[-2]["handle"] == f"{held}@{claim['token']}"
            for words, code in ((("task", "show", held), 0), (("task", "claim", "T-none"), 4)):
                text, document = shell(*words), shell(*words, "--json")
                assert text.exit == document.exit == code
                assert [_timeless(item) for item in json.loads(document.out)["attention"]] == [
                    _timeless(item) for item in notified
                ]
                assert [
                    line.removeprefix("! ") for line in (text.out + text.err).splitlines() if line.startswith("! ")
                ] == [item["message"] for item in notified]


def _timeless(item: dict[str, Any]) -> dict[str, Any]:
    # A low budget has no moment of its own: each hello says as of when it is low.
    return {name: value for name, value in item.items() if name != "at_ms" or item["kind"] != "budget_low"}


def test_every_code_of_the_tree_is_the_daemons_or_a_clients() -> None:
    """The registry has the codes that a daemon answers with, and no code that only a client meets."""
    only_clients = {
        *("usage", "handle_required", "config_invalid", "lease_lost", "connection_lost", "no_daemon"),
        *("daemon_not_running", "daemon_dead_socket", "socket_denied", "socket_blocked"),
    }
    assert set(BY_CODE) == set(REASONS) | only_clients
    assert not set(REASONS) & only_clients
    assert all(issubclass(BY_CODE[code], IfbusError) for code in REASONS)
