"""Scores as pages that a person looks at."""
