"""One state, one step, one loop: optimizer, mesh, checkpoints, audit."""
