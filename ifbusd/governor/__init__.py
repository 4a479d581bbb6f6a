"""IF.governor: who is best for a task, can we afford it, and must somebody be stopped (DESIGN 2, promises 4, 5 and 11).

model.py       policy, profile, account (money and breaker of one swarm, one key) and how they stand in the store
rules.py       pure: money, breaker, similarity and the checks of an admission, each with its figures and what would change it
registry.py    every swarm by what it can do, in memory, ranked; view.py keeps it in step with the store by a watch
admission.py   what the coordinator calls inside its own transactions
service.py     the wire's methods; escalations.py who has to be told that a person is needed
"""
