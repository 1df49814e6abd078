"""The configuration of a run: its schema, how Hydra composes it, every check, and its hash."""
