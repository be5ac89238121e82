"""Which stages a run goes through, in which order, and what of it is done: identity, status, repair, locations.

The engine is handed in; stages do the work. What a run is of, and when it may go on, is decided here alone.
"""
