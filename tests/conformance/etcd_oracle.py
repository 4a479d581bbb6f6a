"""A real etcd as the oracle: the store's operations through etcd's own generated stubs, one to one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
from etcd3 import etcdrpc

from ifbusd.store.base import Compare, Delete, Get, KeyValue, LeaseNotFound, Op, Put, Txn, TxnResult
from ifbusd.store.checks import prefix_end

TIMEOUT_S = 30.0


class EtcdOracle:
    """etcd's answers to the store's questions, under a prefix of its own; blocks, for tests only."""

    def __init__(self, channel: grpc.Channel, prefix: str) -> None:
        self._kv = etcdrpc.KVStub(channel)
        self._lease = etcdrpc.LeaseStub(channel)
        self._prefix = prefix

    def revision(self) -> int:
        """The server's newest revision."""
        request = etcdrpc.RangeRequest(key=b"\0", count_only=True)
        return int(self._kv.Range(request, timeout=TIMEOUT_S).header.revision)

    def range(self, prefix: str, after: str, limit: int) -> tuple[list[KeyValue], bool]:
        """The keys of a range and whether it goes on."""
        start = max(self._prefix + prefix, self._prefix + after + "\0" if after else "")
        end = prefix_end(self._prefix + prefix)
        assert end is not None
        request = etcdrpc.RangeRequest(key=start.encode(), range_end=end.encode(), limit=limit)
        answer = self._kv.Range(request, timeout=TIMEOUT_S)
        return [self._key_value(kv) for kv in answer.kvs], bool(answer.more)

    def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction; etcd's refusals as the store's."""
        request = etcdrpc.TxnRequest(
            compare=[self._compare(compare) for compare in txn.compares],
            success=self._ops(txn.then),
            failure=self._ops(txn.otherwise),
        )
        with _translated():
            answer = self._kv.Txn(request, timeout=TIMEOUT_S)
        values = []
        for response in answer.responses:
            if response.HasField("response_range"):
                found = response.response_range.kvs
                values.append(self._key_value(found[0]) if found else None)
        return TxnResult(bool(answer.succeeded), int(answer.header.revision), tuple(values))

    def grant(self) -> int:
        """A lease that outlives the test."""
        return int(self._lease.LeaseGrant(etcdrpc.LeaseGrantRequest(TTL=3600), timeout=TIMEOUT_S).ID)

    def revoke(self, lease: int) -> None:
        """End a lease; no error if it has ended."""
        try:
            with _translated():
                self._lease.LeaseRevoke(etcdrpc.LeaseRevokeRequest(ID=lease), timeout=TIMEOUT_S)
        except LeaseNotFound:
            return

    def is_alive(self, lease: int) -> bool:
        """Whether a lease can be renewed."""
        requests = iter([etcdrpc.LeaseKeepAliveRequest(ID=lease)])
        return bool(next(iter(self._lease.LeaseKeepAlive(requests, timeout=TIMEOUT_S))).TTL)

    def _key_value(self, kv: etcdrpc.KeyValue) -> KeyValue:
        key = kv.key.decode().removeprefix(self._prefix)
        return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _compare(self, compare: Compare) -> etcdrpc.Compare:
        return etcdrpc.Compare(
            key=self._key(compare.key),
            target=etcdrpc.Compare.MOD,
            result=etcdrpc.Compare.EQUAL,
            mod_revision=compare.mod_revision,
        )

    def _ops(self, ops: Sequence[Op]) -> list[etcdrpc.RequestOp]:
        requests = []
        for op in ops:
            key = self._key(op.key)
            match op:
                case Put():
                    put = etcdrpc.PutRequest(key=key, value=op.value, lease=op.lease)
                    requests.append(etcdrpc.RequestOp(request_put=put))
                case Delete():
                    requests.append(etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key)))
                case Get():
                    requests.append(etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key)))
        return requests


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if "lease not found" in error.details():
            raise LeaseNotFound(error.details()) from error
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            raise ValueError(error.details()) from error
        raise
