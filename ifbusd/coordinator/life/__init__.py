"""A task's life: which states there are, what leads from one to the next, and what an attempt that failed leaves behind.

rules.py      the table of states and moves, and the decisions that follow it, pure
diagram.py    docs/task-life.md, written from the table
"""
