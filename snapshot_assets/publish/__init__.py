"""From a live database to a visible snapshot: the writer lease, the phases of a publish, and recovery."""
