"""Training: state, optimizer, train step, the loop over phases, checkpoints, audit, arms."""
