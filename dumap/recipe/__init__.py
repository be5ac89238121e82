"""Which stages a run goes through, in which order, and what of it is done.

`pipeline.py` follows the stages, `identity.py` refuses to go on with another run, `status.py` tells what is done,
`repair.py` finds damage and removes what no manifest names, `locations.py` looks at what is read and written. The
engine that runs tasks is handed to it.
"""
