"""Arrays in, arrays out: no IO, no clock, no log, neither Zarr nor Dask."""
