"""What is made of finished runs: exports and pictures.

`export.py` writes results in the forms that others read, `picture.py` draws the map. Both read runs, and write nothing
into them; no other folder needs them but the command line.
"""
