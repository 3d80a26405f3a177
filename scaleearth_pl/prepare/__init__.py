"""Offline: sources to shards under data_shards/."""
