"""Keep the named models of a replica: their list, loads by requests, and unloading within a budget of memory."""
