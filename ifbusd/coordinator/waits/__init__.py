"""Who waits for what: one graph over dependencies, held resources, awaited replies and approvals.

rules.py   edges, cycles, where help frees the most; pure
view.py    open questions, their answers and who waits for a resource, in memory, fed by the board
graph.py   the edges that lead on from a node, by the board

Nodes read ``task:T-7``, ``swarm:docs-2``, ``resource:gpu:0`` and ``person``. The shell is `ifbusd.coordinator.questions`.
"""
