"""The query service: a clip is encoded once, and whoever has its id asks about it. Only `app.py` and `router.py` know
Ray Serve; the rest is plain Python that a test calls."""
