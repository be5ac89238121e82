"""What stages hand on to one another: how it is named, read and written.

A module a stage, of the same name. `parts.py` names stages and parts, `job.py` is what each task is given, `kept.py`
what a process keeps between tasks. Nothing is computed here that another order of reading would not do as well: that
is what stages and kernels are for. What is written, and under which name, is the run's format.
"""
