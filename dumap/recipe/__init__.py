"""The stages of a run, their order, and which of them are done.

`recipes.py` names the stages, `pipeline.py` follows them, `identity.py` refuses to go on with another run, `status.py`
tells what is done, `damage.py` finds what is damaged and removes what no manifest names, `locations.py` looks at what
is read and written. The engine that runs tasks is handed to it.
"""
