"""The report of a training, as one page for a browser."""
