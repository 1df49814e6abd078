"""efftx: an experiment runner that regenerates the tables and figures of three papers on efficient Transformers."""

__version__ = "0.1.0"
