"""Named resources that one holder has at a time: files, ports, worktrees, a device.

rules.py   names, bounds, refusals; pure
view.py    who holds what, in memory, fed by the board

The shell is `ifbusd.coordinator.resources`.
"""
