"""What is made of finished runs: exports and pictures, and what a program reads.

`result.py` is a run as a program reads it, `page.py` as a notebook shows it; `export.py` writes results in the forms
that others read, `picture.py` draws the map, `rows.py` finds what a run knows of rows. They read runs, and write
nothing into them; no other folder needs them but the doors.
"""
