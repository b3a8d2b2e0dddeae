"""A compiler for attention patterns."""
