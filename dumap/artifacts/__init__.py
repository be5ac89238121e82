"""The data that stages hand on to one another: names of parts, and how parts are read and written.

Each stage whose parts other stages read has a module of its name here. `part_names.py` names stages and parts. `job.py`
holds the job, which each task gets. `task_cache.py` holds the data that a process keeps between tasks. These modules
only read, arrange and write parts; stages and kernels compute. The arrays that they write, and the arrays' names, are
the run's format.
"""
