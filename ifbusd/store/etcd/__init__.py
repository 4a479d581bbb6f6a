"""The store over a real etcd, for many hosts (ADR 0020). Only `backend = "etcd"` imports what is in here, and with it gRPC.

========== ==========================================================================================================
config     ``[store.etcd]``
keys       where a store's keys stand in etcd, and our values as etcd's messages
faults     etcd's and gRPC's errors, sorted by what they mean for the caller
cluster    channels to all members, which one is used, whether it answers, and calls from trio
feed       a watch that is resumed for ever
batching   which transactions may go out together (pure)
commits    transactions, grouped and sent
replica    what this daemon knows by heart, bounded (pure)
renewals   leases
records    the witness log of this host, which follows the cluster's
spool      keys in the order of their revisions, on the disk
store      the store, put together
========== ==========================================================================================================
"""
