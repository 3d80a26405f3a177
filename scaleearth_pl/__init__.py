"""ScaleEarth: LoRA ranks that open and close with the image's ground sampling distance (arXiv 2605.07562)."""

__version__ = "0.1.0"
