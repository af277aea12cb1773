"""A run as its files describe it: its options, its record, its metrics. Needs no PyTorch."""
