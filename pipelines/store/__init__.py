"""Clip stores: what training reads. `layout.py` says what lies where."""
