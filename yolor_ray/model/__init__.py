"""Networks: implicit knowledge, layers, heads, fusing and weights. Needs torch alone."""
