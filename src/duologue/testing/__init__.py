"""Support for tests of this package and of new backends: the contract, random walks, tiny models. Not for users."""
