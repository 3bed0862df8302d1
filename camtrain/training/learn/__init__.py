"""How a training learns: losses, optimizer, solvers, teacher, freezing, averaging."""
