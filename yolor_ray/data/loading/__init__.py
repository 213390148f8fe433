"""Training batches of one worker: the plan of an epoch, the loader, and the ledger of records taken."""
