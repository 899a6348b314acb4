"""Results in the formats of other programs, one file per format; `made.py` is the door."""
