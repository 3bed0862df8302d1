"""Using a trained network: the bundle and the predictor."""
