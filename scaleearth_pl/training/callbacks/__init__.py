"""Observers: read what a step returned, write TensorBoard; change nothing."""
