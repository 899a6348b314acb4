"""What can go wrong during a run. What is wrong before it starts is a ValueError."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite."""


class RunFailed(RuntimeError):
    """A run ended before its last step."""
