"""The same stages on Ray: workers do the work, the stage puts it together where it always did.

In: a stage's configuration and inputs, and a place such as `ray` or `ray://host:port`. Out: the
artifact that one process would make, byte for byte. No stage knows of this package, and what can
be read or asked by any worker is all that leaves the process: files (`ingest.py`) and requests to
a teacher (`generate.py`). Importing this package imports no Ray.
"""
