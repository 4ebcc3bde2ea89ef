"""Engines for speech detection, recognition and synthesis. Each implements a protocol of `interfaces`."""
