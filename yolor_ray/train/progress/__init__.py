"""Progress of a run for people: a view on a terminal, and warnings of trainings that learn nothing."""
