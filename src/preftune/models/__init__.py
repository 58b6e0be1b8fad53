"""Models: loading, adapters, scalar heads, and saving so that others can load."""
