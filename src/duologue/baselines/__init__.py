"""Other kinds of sessions, for comparison with duplex decoding, with the same interface, events and trace."""
