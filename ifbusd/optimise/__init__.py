"""IF.optimise: what did it cost, per swarm, task, operation, model and hour, and what of it was wasted.

model.py       one settled cost as the governor's ledger has it, and a task as far as a report needs it
rules.py       pure: sums by one dimension, what was accepted, what was waste
service.py     reads the ledger of a period in slices, then the tasks that occur in it
interface.py   the contract; the ledger itself is written by ifbusd.governor, in the commit that spends
"""
