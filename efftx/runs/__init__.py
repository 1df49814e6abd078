"""Runs on the disk: directory, checkpoints, average of the weights, and what starts from one."""
