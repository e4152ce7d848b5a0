"""The ends of a model: everything but its blocks, and what stands in their place."""
