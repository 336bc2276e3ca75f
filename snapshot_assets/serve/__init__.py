"""The reader node: a process that follows datasets and answers SQL about them over Flight SQL."""
