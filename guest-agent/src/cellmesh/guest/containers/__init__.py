"""Containers: what one is made of, how it is run, and how it is kept running."""
