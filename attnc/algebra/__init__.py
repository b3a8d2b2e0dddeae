"""Rewriting on meaning: rules, index sets, tiles, proofs. Owns islpy and sympy."""
