"""Ray as this package meets it: joining a cluster, its access and capacity, stop signals, and blocks of encoded records."""
