"""Map deep neural networks to brains: a BIDS-App. See README.md."""

__version__ = "0.1.0"
