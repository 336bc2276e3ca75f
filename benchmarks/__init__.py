"""Measurements of what matters, beside what people would do otherwise: `python -m benchmarks [NAME ...] [--full]`."""
