"""What must not change between two parts of a training, and how a change is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from kerasllm.errors import InputError
from kerasllm.folder import description
from kerasllm.models import LanguageModel
from kerasllm.training.state import to_json


def described(model: keras.Model) -> dict[str, Any]:
    """What of a model and its optimizer must not change."""
    described = {"dtype": model.dtype_policy.name}
    if isinstance(model, LanguageModel):
        described |= description(model)
    if getattr(model, "optimizer", None) is not None:
        described["optimizer"] = _lasting(keras.saving.serialize_keras_object(model.optimizer))
    return to_json(described)


def _lasting(config: Any) -> Any:
    """A Keras object's config without names, which are made up anew, and a learning rate that callbacks change."""
    if isinstance(config, Mapping):
        return {
            key: _lasting(value)
            for key, value in config.items()
            if key != "name" and not (key == "learning_rate" and isinstance(value, int | float))
        }
    return [_lasting(value) for value in config] if isinstance(config, list | tuple) else config


def check_same(path: Path, name: str, before: Any, now: Any, *but: str) -> None:
    """Compare what must not change.

    Args:
        path: The checkpoint, for the message.
        name: What is compared, for the message.
        before: JSON of the checkpoint.
        now: JSON of this training.
        *but: Keys to leave out.

    Raises:
        InputError: They differ; the message shows how.
    """
    before, now = ({k: v for k, v in one.items() if k not in but} for one in (before, now))
    if changes := _differences(before, now, name):
        raise InputError(
            f"{path}: this training was begun otherwise ({'; '.join(changes)}); go on as it was begun, or start anew "
            "in another folder"
        )


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two pieces of JSON, each as `name: before -> now`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [*before, *(key for key in now if key not in before)]
        parts = (_differences(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in names)
        return [line for part in parts for line in part]
    return [] if before == now else [f"{name}: {before!r} -> {now!r}"]
