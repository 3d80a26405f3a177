"""Prompt files, one a tier and one a family, put together by `compose.py`. Each opens with its version."""
