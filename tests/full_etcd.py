"""An etcd that is full, and has room again."""

from __future__ import annotations

from typing import Any, Final

import grpc
from etcd3 import etcdrpc

from tests.servers import Node

# Small enough to be full soon, large enough for what daemons keep there.
OPTIONS: Final = ("--quota-backend-bytes=4000000",)
_KEY: Final = b"/ballast/"
_END: Final = b"/ballast0"
_BALLAST_BYTES: Final = 100_000
_TIMEOUT_S: Final = 30


def fill(node: Node) -> None:
    """Write, under another prefix, until etcd raises its alarm."""
    with grpc.insecure_channel(node.address) as channel:
        kv = etcdrpc.KVStub(channel)
        number = 0
        try:
            while True:
                number += 1
                request = etcdrpc.PutRequest(key=_KEY + b"%d" % number, value=bytes(_BALLAST_BYTES))
                kv.Put(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if "space exceeded" not in error.details():
                raise


def takes_deletes(node: Node) -> bool:
    """Whether this etcd, being full, takes transactions that only delete: since 3.4.20 and 3.5.7."""
    with grpc.insecure_channel(node.address) as channel:
        delete = etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=_KEY + b"1"))
        try:
            etcdrpc.KVStub(channel).Txn(etcdrpc.TxnRequest(success=[delete]), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if "space exceeded" not in error.details():
                raise
            return False
        return True


def make_room(node: Node) -> None:
    """What an operator does: delete, compact, defragment, disarm."""
    with grpc.insecure_channel(node.address) as channel:
        kv, maintenance = etcdrpc.KVStub(channel), etcdrpc.MaintenanceStub(channel)
        kv.DeleteRange(etcdrpc.DeleteRangeRequest(key=_KEY, range_end=_END), timeout=_TIMEOUT_S)
        revision = kv.Range(etcdrpc.RangeRequest(key=_KEY), timeout=_TIMEOUT_S).header.revision
        kv.Compact(etcdrpc.CompactionRequest(revision=revision, physical=True), timeout=_TIMEOUT_S)
        maintenance.Defragment(etcdrpc.DefragmentRequest(), timeout=_TIMEOUT_S)
        for alarm in alarms(node):
            request = etcdrpc.AlarmRequest(
                action=etcdrpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
            )
            maintenance.Alarm(request, timeout=_TIMEOUT_S)


def alarms(node: Node) -> list[Any]:
    """The alarms that are raised."""
    with grpc.insecure_channel(node.address) as channel:
        request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        return list(etcdrpc.MaintenanceStub(channel).Alarm(request, timeout=_TIMEOUT_S).alarms)
