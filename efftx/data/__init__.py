"""Each data set: where it comes from, its checksum, its variant, its batch as a function of (seed, step)."""
