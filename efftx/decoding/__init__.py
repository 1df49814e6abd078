"""Generation, one token after another."""
