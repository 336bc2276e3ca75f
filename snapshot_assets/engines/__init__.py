"""The databases that can be published: the engine contract and one module for each engine."""
