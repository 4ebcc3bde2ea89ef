"""What tests of this package and of new backends use: the contract, random walks, tiny models. Not for production."""
