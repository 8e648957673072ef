"""Several processes that take one trajectory together (method §5)."""
