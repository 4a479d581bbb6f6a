"""IF.witness: what happened, in which order, by whom, and has anybody touched the record since (DESIGN 2, promise 10).

rules.py       pure: the chain recomputed, numbers, revisions, receipts, and what cannot be known
service.py     the wire's methods on the running store, in slices that hold nobody up
offline.py     the same on the database file of a stopped daemon, with SQLite's own checks and the checksum of each page
interface.py   the contract; the entries themselves are written by ifbusd.operation, in the commit that they tell of
"""
