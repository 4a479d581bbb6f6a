"""IF.coordinator: which task is mine.

interface.py   the typed interface; its signatures are the wire's methods
model.py       stored records and the configuration
rules.py       pure decisions: states, checks, refusals
board.py       the view in memory, fed by the store's watch: what is ready, who waits
holder.py tasks.py sessions.py inbox.py blockers.py   the shell, by concern; service.py joins them as IFCoordinator
"""
