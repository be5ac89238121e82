"""Views of runs: what programs and notebooks read, exports and pictures.

`result.py` gives programs access to a run, and `page.py` shows a run in a notebook. `handle.py` follows a run that a
cluster drives. `export.py` writes results in formats of other programs, `picture.py` draws the map, and `rows.py` reads
neighbours and graph in the input's order. `fitted.py` has the attributes of umap-learn's estimators. These modules read
runs and write nothing into them. Only the API, the estimators and the command line import them.
"""
