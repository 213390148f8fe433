"""Encoded images: headers, decoding, and the letterbox of the network input."""
