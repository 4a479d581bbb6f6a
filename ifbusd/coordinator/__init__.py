"""IF.coordinator: which task is mine.

interface.py   the typed interface; its signatures are the wire's methods
model.py       stored records and the configuration
rules.py       pure decisions: states, checks, refusals
board.py       the view in memory, fed by the store's watch; offers.py: what is ready and who waits; mailboxes.py: who listens
holder.py      the fence, also for other components; leases.py: leases that are no longer needed
locks/         named resources; waits/: who waits for whom, and which wait would close a circle
history.py     what happened to tasks, for subscriptions that come back; timers.py: what is due when; retention.py: by which clock finished tasks are kept
bindings.py    the processes and connections that claims and sessions are bound to
core.py        what the shell's parts share: tasks.py claiming.py holding.py freeing.py sessions.py inbox.py blockers.py alarms.py resources.py waiting.py questions.py;
               service.py joins them as IFCoordinator
"""
