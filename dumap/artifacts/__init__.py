"""What stages hand on to one another: names of parts, and how they are read and written.

A module a stage, of the same name. `part_names.py` names stages and parts, `job.py` is what each task is given,
`task_cache.py` what a process keeps between tasks. Nothing is computed here: that is what stages and kernels are
for. What is written, and under which name, is the run's format.
"""
