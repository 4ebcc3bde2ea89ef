"""Audio language models of the transformers library: Qwen2-Audio and Voxtral as an `AudioModel`.

Untested with real weights, which need more memory than the tests have; the tests compare tiny random models of these
architectures with the library's own forward pass. Shapes: S samples, M mel bins, F frames of a window, N rows, D the
width of the language model.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.masking_utils import create_bidirectional_mask

from duologue.backends.rows import AdapterRows
from duologue.errors import UsageError, require
from duologue.hearing.audio_model import AudioModel, check_sound
from duologue.text.tokenizer import Tokenizer
from duologue.types import Token

FloatArray = npt.NDArray[np.float32]

_MAX_SECONDS = 1800.0  # of a sound for Voxtral, which hears as many windows of 30 s as its context holds


def qwen2_audio(model: Any, extractor: Any, tokenizer: Tokenizer) -> AudioModel:
    """Qwen2-Audio: a sound of up to 30 s [S] becomes 25 rows a second, between `<|audio_bos|>` and `<|audio_eos|>`.

    The encoder attends to the whole sound, so one that has grown is encoded anew, and all its rows are fed again.

    Args:
        model: a `Qwen2AudioForConditionalGeneration`, also for the backend: `TorchBackend(model, …)`.
        extractor: its `WhisperFeatureExtractor`.
        tokenizer: that of the model.

    Raises:
        UsageError: `model` is of another kind, or `tokenizer` lacks the audio tokens.
    """
    _check_kind(model, "qwen2_audio")
    opener, closer = (_special(tokenizer, text) for text in ("<|audio_bos|>", "<|audio_eos|>"))

    def encode(sound: Any) -> FloatArray:
        check_sound(sound, max_seconds=extractor.chunk_length, rate=extractor.sampling_rate)
        return _qwen2_rows(model, extractor, sound)

    name, ending = tokenizer.encode("Audio 1: "), tokenizer.encode("\n")  # as the model's own template has it
    return AudioModel(encode, (*name, opener), (closer, *ending))


def _qwen2_rows(model: Any, extractor: Any, sound: FloatArray) -> FloatArray:
    features = extractor(
        sound,
        sampling_rate=extractor.sampling_rate,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    tower = model.model.audio_tower
    mel, mask = features["input_features"].to(tower.device), features["attention_mask"].to(tower.device)
    num_positions, (num_rows,) = tower._get_feat_extract_output_lengths(mask.sum(-1))  # before and after pooling
    require(
        int(num_rows) > 0,
        f"the sound has {len(sound)} samples, which is less than one row; wait for more than a hundredth of a second",
    )
    positions = torch.arange((mel.shape[2] - 2) // 2 + 1, device=tower.device)
    with torch.inference_mode():
        seen = create_bidirectional_mask(
            config=tower.config,
            inputs_embeds=torch.zeros(1, len(positions), 1, dtype=tower.dtype, device=tower.device),
            attention_mask=(positions[None] < num_positions[:, None]).long(),
        )
        encoded = tower(mel, attention_mask=seen).last_hidden_state  # [1, F / 4, width of the encoder]
        return _as_rows(model.model.multi_modal_projector(encoded)[0, : int(num_rows)])


def voxtral(model: Any, extractor: Any, tokenizer: Tokenizer) -> AudioModel:
    """Voxtral: a sound of up to half an hour [S] becomes windows of 30 s, each of 375 rows, behind `[BEGIN_AUDIO]`.

    The last window is filled up with silence. No token closes the audio: the state is read at the one that ends the
    user's turn. Each window is encoded apart from the others.

    Args:
        model: a `VoxtralForConditionalGeneration`, also for the backend: `TorchBackend(model, …)`.
        extractor: its `WhisperFeatureExtractor`.
        tokenizer: that of the model.

    Raises:
        UsageError: `model` is of another kind, or `tokenizer` lacks the audio token.
    """
    _check_kind(model, "voxtral")

    def encode(sound: Any) -> FloatArray:
        check_sound(sound, max_seconds=_MAX_SECONDS, rate=extractor.sampling_rate)
        features = extractor(
            sound,
            sampling_rate=extractor.sampling_rate,
            padding=True,
            truncation=False,
            pad_to_multiple_of=extractor.n_samples,
            return_tensors="pt",
        )["input_features"]
        windows = features[0].split(extractor.nb_max_frames, dim=1)  # each [M, F]
        tower = model.model.audio_tower
        with torch.inference_mode():
            found = [model.get_audio_features(one[None].to(tower.device)).pooler_output for one in windows]
            return _as_rows(torch.cat(found))

    return AudioModel(encode, (_special(tokenizer, "[BEGIN_AUDIO]"),))


def boundary_rows(model: Any, boundary: Token, states: FloatArray) -> AdapterRows:
    """The rows of an adapter whose probe is the boundary token itself, so that a LoRA can be active there.

    `boundary` is `SoundTemplate.boundary`, `states` [S, D] are the output rows of the states. The probe is fed with the
    LoRA and rolled back; the boundary that an answer follows is fed without it.
    """
    embeddings = model.get_input_embeddings()
    with torch.inference_mode():
        probe = embeddings(torch.tensor([boundary], device=embeddings.weight.device))
    return AdapterRows(_as_rows(probe), states)


def _as_rows(found: torch.Tensor) -> FloatArray:
    return np.asarray(found.float().cpu().numpy())


def _check_kind(model: Any, kind: str) -> None:
    got = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    require(got == kind, f"this is a front end for models of type {kind}, not {got}; make an AudioModel for it")


def _special(tokenizer: Tokenizer, text: str) -> Token:
    if text not in tokenizer.special_tokens:
        raise UsageError(f"the tokenizer has no token {text}; load that of the audio model")
    return tokenizer.special_tokens[text]
