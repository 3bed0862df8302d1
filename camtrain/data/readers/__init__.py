"""Readers of data sets on disk: one file per layout, each of them gives a ``Listing``."""
