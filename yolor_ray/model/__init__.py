"""The network: layers, implicit knowledge, heads, fusing, weights and the import of upstream checkpoints. Needs torch alone."""
