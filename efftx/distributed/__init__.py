"""One training in several processes: who they are, what they say to each other, and what of a model they share."""
