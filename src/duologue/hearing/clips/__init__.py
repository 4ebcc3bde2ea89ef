"""Clips to train and measure hearing on: texts and recordings, in shared rooms, whole and cut, as the recogniser hears
them."""
