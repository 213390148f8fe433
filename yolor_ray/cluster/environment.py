"""Name what every process of ours begins with: the environment that glibc reads only at the start, and Ray's hook."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Keep freed buffers in the process instead of fetching them from the system for every batch."""
HIDE_SECRETS = {"worker_process_setup_hook": "yolor_ray.io.redact.hide_secrets"}
"""Runtime environment with which every process of Ray that works for a job hides secrets, Ray's own controllers included."""
