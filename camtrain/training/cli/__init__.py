"""The verbs that train and measure, on the command line."""
