"""From raw datasets to clip stores, and from registered models to results: adapters, ground truth and Ray Data jobs."""
