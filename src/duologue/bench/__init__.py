"""What conversations cost, measured on this machine."""
