"""Inputs: where the rows come from that a run embeds.

A source has rows, dims, a dtype, the rows that are read at once, and a signature that changes with the data: see
`source.py`. Tasks read sources, and each process opens a source by the configuration (`opening.py`). Each kind of data
has a module of its own. `files.py`, `arrow_files.py`, `hdf5_files.py` and `ingestion.py` serve `dumap ingest`.
"""
