"""From staged files to stored objects and back: segments, chunks, frames, packs and the index."""
