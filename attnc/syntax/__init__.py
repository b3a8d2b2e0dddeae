"""Text to tree. Owns lark."""
