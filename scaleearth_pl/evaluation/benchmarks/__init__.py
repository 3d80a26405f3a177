"""What multiple-choice benchmarks of remote sensing share: rows from local files, large images, letters, macro means."""
