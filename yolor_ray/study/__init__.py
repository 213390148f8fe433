"""Studies: several training runs that are compared with each other in one report."""
