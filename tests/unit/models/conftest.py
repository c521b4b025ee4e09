"""Small models of many architectures, written once a session; and no network."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config import ModelSection
from heliostat.models import LoadedModel, load_model
from heliostat.models.loaded_model import assemble
from tests.support.checkpoints import chat_tokenizer, write_checkpoint


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a network fails the test that made it."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, written once a session; tests must not change it."""
    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folders[family] = write_checkpoint(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The built-in model in its default shape; tests must not change it."""
    loaded = load_model(ModelSection(), seed=0, device=torch.device("cpu"))
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="session")
def model_with(tiny: LoadedModel) -> Callable[[Any], LoadedModel]:
    """The tiny model with a chat tokenizer of a given template."""

    def make(template: Any) -> LoadedModel:
        tokenizer = chat_tokenizer()
        tokenizer.chat_template = template
        return assemble(tiny.model, tokenizer, "m")

    return make
