"""A run from its folder to its bundle: train, go on, test, ship."""
