"""Optimisers and the courses of their learning rates."""
