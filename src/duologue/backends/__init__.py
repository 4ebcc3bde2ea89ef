"""Where weights and KV live: one file a library, one contract for all."""
