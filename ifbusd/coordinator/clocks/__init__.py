"""Three clocks of each claim: alive (its process), beating (its renewals), progressing (new evidence per spend).

rules.py    what they show and what is alarming, pure; alarms.py looks at them now and then and tells
"""
