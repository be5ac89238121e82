"""Runs tasks: on Dask, the only folder that imports it, with the checks of what is run on."""
