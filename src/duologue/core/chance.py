"""Random numbers that depend on nothing but where they are used (design rule 12)."""

import hashlib


def uniform(seed: int, turn: int, index: int) -> float:
    """A number in [0, 1) for token `index` of the answer behind `turn` turns of history, in the session of `seed`.

    No other session, no ignored word and no answer that was taken back changes it.
    """
    digest = hashlib.blake2b(f"{seed}/{turn}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
