"""How data are divided, and what a run will take: arithmetic before anything runs.

`geometry.py` is part of a run's identity: other cells give another embedding. The projections in `budget.py`,
`audits.py` and `plan.py` may change at any time. A projected peak must be at least the measured one. `curve.py` gives
the layout's curve.
"""
