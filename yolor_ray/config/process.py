"""Name the environment that every process of ours wants and that glibc reads only when a process starts."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Keep freed buffers in the process instead of fetching them from the system for every batch."""
