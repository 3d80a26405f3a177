"""A procedural Earth in metres."""
