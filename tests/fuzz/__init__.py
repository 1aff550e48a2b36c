"""Hostile input: coverage-guided fuzzing of everything that reads what strangers send; see SECURITY.md."""
