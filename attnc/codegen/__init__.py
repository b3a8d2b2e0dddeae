"""Plan to source text. Owns jinja2."""
