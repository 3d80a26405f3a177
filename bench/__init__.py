"""Benchmarks against the trainers that a user could pick instead; see README.md here."""
