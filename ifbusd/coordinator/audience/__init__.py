"""Whom a broadcast is for: swarms by what they can do, and by the topics that they subscribed to.

rules.py   expressions over capabilities; pure
topics.py  who subscribed to what, in memory, fed by the board
"""
