"""What duplex decoding is compared with: sessions of other kinds, with the same interface, events and trace."""
