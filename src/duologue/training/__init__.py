"""What makes a model duplex."""
