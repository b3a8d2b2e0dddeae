"""Bilinear schemes: fast products of matrices, read, proven exact, composed and priced."""
