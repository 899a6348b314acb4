"""Pictures of videos, queries and results."""
