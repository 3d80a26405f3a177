"""Task files for lmms-eval (`--include_path`); `experiments/harness/README.md` has the commands."""
