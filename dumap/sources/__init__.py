"""What is embedded: rows, dims, dtype, the rows that are read at once, and a signature that changes with the data.

A source is read by tasks, so it can be pickled. A new kind of data is a module of its own.
"""
