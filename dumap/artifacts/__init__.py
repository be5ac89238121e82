"""What stages hand on to one another: names of parts, and how they are read and written.

A module for each stage whose parts others read, of the same name. `part_names.py` names stages and parts, `job.py` is
what each task is given, `task_cache.py` what a process keeps between tasks. Here parts are only read, arranged and
written; stages and kernels compute. What is written, and under which name, is the run's format.
"""
