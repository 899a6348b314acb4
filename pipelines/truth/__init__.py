"""From a `Sequence` to clips whose queries have exact answers."""
