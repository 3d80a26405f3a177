"""The nouns: gate, gated LoRA, GSD head, resolver, tree attention. Never imports data or Lightning."""
