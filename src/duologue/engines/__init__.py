"""What runs sessions on a backend."""
