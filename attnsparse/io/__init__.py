"""Files that nobody vouches for: strict readers, limits, and files that are there whole or not at all."""
