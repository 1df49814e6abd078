"""`efftx sample`: what a trained model writes, as text, pictures or sound."""
