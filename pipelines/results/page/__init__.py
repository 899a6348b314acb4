"""One HTML file per video to look at its results, and one per job that leads to them."""
