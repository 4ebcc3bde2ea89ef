"""What the voice needs from others: who detects speech, who recognises words, who speaks. Each can be replaced."""
