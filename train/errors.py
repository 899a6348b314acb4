"""What can go wrong during a run. What is wrong before it starts is a ValueError."""


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite."""


class OutOfMemory(RuntimeError):
    """A step does not fit, however often it is tried."""


class NotShared(RuntimeError):
    """A run or a store is not there on a node, though the place answers."""


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written."""

    def __init__(self, place: object, cause: object) -> None:
        super().__init__(place, cause)

    def __str__(self) -> str:
        place, cause = self.args
        return (
            f"checkpoint {place} could not be written ({cause}): with that mended, the same command goes on from the "
            "last whole one"
        )


class RunFailed(RuntimeError):
    """A run ended before its last step."""


class RunStopped(RunFailed):
    """Somebody stopped it; it can go on."""

    exit_code = 130
