"""How clips sound, in a file beside their samples: row i of `train.safetensors` belongs to line i of `train.jsonl`.

N clips, K pieces of F features (`duologue.hearing.evidence`), R numbers about the room.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from duologue.errors import BadData

SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Sounds:
    """The sound of N clips."""

    features: npt.NDArray[np.float32]  # [N, K, F]
    rooms: npt.NDArray[np.float32]  # [N, R]: what is heard between the words, for the search for artifacts
    recogniser: str = ""  # whose encoder it was

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: Path) -> None:
        """Write them, the features in half precision."""
        tensors = {"features": self.features.astype(np.float16), "rooms": self.rooms.astype(np.float32)}
        save_file(tensors, path, metadata={"recogniser": self.recogniser})


def beside(samples: Path) -> Path:
    """The file with the sounds of a file of samples."""
    return samples.with_suffix(SUFFIX)


def read_sounds(samples: Path, num_samples: int) -> Sounds:
    """The sounds of the first `num_samples` samples of the file `samples`.

    Raises:
        BadData: there is no such file, it is damaged, or it belongs to other samples.
    """
    path = beside(samples)
    try:
        with safe_open(path, framework="numpy") as file:
            features, rooms = (file.get_tensor(name) for name in ("features", "rooms"))
            recogniser = (file.metadata() or {}).get("recogniser", "")
    except (OSError, SafetensorError) as error:
        raise BadData(
            f"{path} cannot be read: {error}; `duologue data build-audio` writes the sounds of {samples.name} there"
        ) from None
    if features.ndim != 3 or rooms.ndim != 2 or len(features) != len(rooms):
        raise BadData(f"{path} has features {features.shape} and rooms {rooms.shape}; expected [N, K, F] and [N, R]")
    if not (np.isfinite(features).all() and np.isfinite(rooms).all()):
        raise BadData(f"{path} has numbers that are not finite (NaN or infinity); build the clips again")
    if len(features) < num_samples:
        raise BadData(f"{path} has {len(features)} sounds for {num_samples} samples; copy both files together")
    return Sounds(features[:num_samples].astype(np.float32), rooms[:num_samples].astype(np.float32), recogniser)
