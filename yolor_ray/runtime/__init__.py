"""Jobs on Ray: ingest, pack, train, evaluate, export and benchmark."""
