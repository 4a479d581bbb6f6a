"""What keeps a ready task back, beside the match and the money.

rules.py      figures and refusals: concurrency keys, slots
checks.py     the same inside a claim's transaction
pausing.py    pause and resume; weights of groups
draining.py   pauses with an end: of a swarm, and of this host
"""
