"""Many machines: the same program on a Dask cluster."""
