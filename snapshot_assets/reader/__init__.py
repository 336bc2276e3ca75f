"""Readers: local copies, refresh, pools, providers, and the catalogue of several datasets in one SQL session."""
