"""The chat in a terminal: what it shows (`transcript`), full screen (`screen`) or line by line (`plain`)."""
