"""Measuring against peers: providers, cases, reports, pictures."""
