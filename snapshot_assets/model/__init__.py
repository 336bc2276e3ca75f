"""Frozen values of the store's documents: how they are parsed, refused and written."""
