"""Where snapshots are kept: the store contract, its backends, and the facade that opens them by URL."""
