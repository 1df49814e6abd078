"""A soak of everything that efftx writes and reads back: flipped bits and kills, counted by what came of them.

`make soak` flips 500 bits of every kind of file and kills 100 commands; `make soak FLIPS=50 KILLS=10` fewer.
"""
