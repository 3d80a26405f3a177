"""What the model eats: shards, reading plan, processor, trees, DataModule. Never imports model."""
