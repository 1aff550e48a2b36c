"""Locust's users: what each sends, and what it takes for the right answer."""
