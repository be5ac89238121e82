"""How data are cut, and what a run will take: numbers in, numbers out, before anything runs.

`geometry.py` is part of a run's answer: another cut of cells is another embedding. What tasks are projected to take
(`budget.py`, `plan.py`) may change at any time, and must hold what is measured.
"""
