"""Looking at every picture of a data set once, before a training does."""
