"""Hello, and what a swarm must hear before it goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from ifbus.errors import NotFound, Overloaded, PermissionDenied, UnknownMethod, VersionMismatch
from ifbusd.rpc.attention import subject_of
from ifbusd.rpc.limits import RpcLimits
from tests.integration.rpc.serving import FOREIGN_SWARM, OWN_SWARM, serving

LETTER = {"kind": "cancel", "task_id": "T-7"}


async def test_hello_says_who_is_there_and_what_it_takes(tmp_path: Path) -> None:
    """Versions, features, limits, and who the daemon takes the client for."""
    async with serving(tmp_path) as served, served.client() as client:
        answer = await client.call("daemon.hello", protocol=[1, 99], client="test 1")
        assert (answer["build"], answer["protocol"], answer["pid"]) == ("1.2.3", 1, os.getpid())
        assert (answer["uid"], answer["operator"]) == (os.getuid(), False)
        assert answer["limits"]["message_bytes"] == 65_536
        assert "attention" in answer["features"]
        again = await client.call("daemon.hello")
        assert {**again, "now_ms": 0} == {**answer, "now_ms": 0}


@pytest.mark.parametrize(
    ("protocol", "remedy"), [([99], "systemctl restart ifbusd"), ([0], "pip install --upgrade ifbus")]
)
async def test_no_common_version_is_refused_with_the_remedy(tmp_path: Path, protocol: list[int], remedy: str) -> None:
    """Both sides' versions, and whose turn it is."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(VersionMismatch) as mismatch:
            await client.call("daemon.hello", protocol=protocol, client="old 0.1")
        assert mismatch.value.data["daemon_protocol"] == [1]
        assert mismatch.value.would_change[0]["call"] == remedy
        assert "old 0.1" in mismatch.value.message


async def test_what_waits_comes_before_the_answer(tmp_path: Path) -> None:
    """A hello for a swarm, and a registration, bring what the swarm must hear, then what is published later."""
    async with serving(tmp_path) as served:
        served.items.append(LETTER)
        async with served.client() as client:
            for call in (client.start("daemon.hello", swarm=OWN_SWARM), client.start("probe.register", OWN_SWARM)):
                msgid = await call
                assert await client.read()
                assert [(n.method, n.params) for n in client.notifications] == [("attention", [[LETTER]])]
                assert client.responses == []
                await client.answer(msgid)
                client.notifications.clear()
            assert served.bus.publish(subject_of(OWN_SWARM), {"kind": "pause"}) == 1
            assert await client.read()
            assert client.notifications[0].params == [[{"kind": "pause"}]]
            assert served.attention.swarms_of(1) == [OWN_SWARM]
        while served.server.statistics().sessions:
            await trio.sleep(0.001)
        assert served.bus.publish(subject_of(OWN_SWARM), {"kind": "pause"}) == 0
        assert served.attention.swarms_of(1) == []


async def test_what_happens_during_the_hello_is_heard(tmp_path: Path) -> None:
    """An item that is published while those before it are read comes after them, once, also where the swarm is bound already."""
    async with serving(tmp_path) as served, served.client() as client:
        served.items.append(LETTER)
        served.reading = lambda: served.bus.publish(subject_of(OWN_SWARM), {"kind": "pause"})
        for _ in range(2):
            await client.call("daemon.hello", swarm=OWN_SWARM)
            items = [item for notification in client.notifications for item in notification.params[0]]
            assert sorted(item["kind"] for item in items) == sorted([LETTER["kind"], "pause"])
            client.notifications.clear()


async def test_nobody_hears_for_a_foreign_swarm(tmp_path: Path) -> None:
    """Another user's swarm is refused, a failed registration binds nothing."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(PermissionDenied):
            await client.call("daemon.hello", swarm=FOREIGN_SWARM)
        with pytest.raises(NotFound):
            await client.call("probe.register", swarm_id=OWN_SWARM, fails=True)
        assert served.bus.statistics()["sinks"] == 0
        assert client.notifications == []


async def test_a_connection_hears_for_a_bounded_number_of_swarms(tmp_path: Path) -> None:
    """One more is refused before anything is registered; the bound ones may come again."""
    async with serving(tmp_path, limits=RpcLimits(swarms_per_connection=2)) as served, served.client() as client:
        for swarm in ("a", "b", "a"):
            await client.call("probe.register", swarm)
        with pytest.raises(Overloaded):
            await client.call("probe.register", "c")
        assert served.probe.registered == ["a", "b", "a"]
        assert served.bus.statistics()["sinks"] == 2


async def test_the_methods_describe_themselves(tmp_path: Path) -> None:
    """All of them in one answer, one of them in full, an unknown one with its nearest."""
    async with serving(tmp_path) as served, served.client() as client:
        methods = {method["name"]: method for method in (await client.call("daemon.describe"))["methods"]}
        claim = methods["coordinator.claim_task"]
        assert claim["params"][0] == {"name": "task_id", "type": "string", "required": True}
        assert claim["params"][2] == {"name": "wait_ms", "type": "integer", "required": False, "default": 0}
        assert methods["governor.reset_circuit_breaker"]["role"] == "operator"
        (full,) = (await client.call("daemon.describe", "coordinator.claim_task"))["methods"]
        assert "exactly one caller wins" in full["doc"]
        with pytest.raises(UnknownMethod) as unknown:
            await client.call("daemon.describe", "claim_task")
        assert unknown.value.data["nearest"] == "coordinator.claim_task"
        assert await client.call("daemon.status") == {"tasks": {}}
