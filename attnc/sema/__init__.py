"""Tree to typed IR: names, types, shapes."""
