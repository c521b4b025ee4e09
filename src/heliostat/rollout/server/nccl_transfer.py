"""The transfer of weights from the trainer's GPU to those of a vLLM server over NCCL, in place of files.

    once:       get_world_size --> shutdown_weight_transfer_engine --> init_weight_transfer_engine | open the group
    every sync: start_weight_update --> update_weights | broadcast each tensor --> finish_weight_update

A bar stands between two things at the same time: the server answers only once the trainer has done its part. The
trainer is rank 0 of the group, and the server's workers are the others.

Written against the source of vLLM 0.32, whose own function opens the trainer's end, and **not run**: tests hold the
requests and their order to a server with a stand-in for the group.

Left out: packed buffers, CUDA IPC for a server on the same GPU, and several senders.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch

from heliostat.config import ConfigError
from heliostat.models import LoadedModel
from heliostat.models.saving import plain_state
from heliostat.rollout.server.answers import WorldSize, parsed
from heliostat.rollout.server.client import Server, ServerError
from heliostat.rollout.server.model_tensors import tensors_of
from heliostat.rollout.server.vllm import update_halted
from heliostat.rollout.server.vllm_requests import get_dev
from heliostat.rollout.server.vllm_sleep import TITLE


class TransferGroup(Protocol):
    """The trainer's end of a group in which it broadcasts."""

    def start(self, tensors: Iterable[torch.Tensor]) -> None:
        """Begin to broadcast tensors in order, without waiting for the receivers."""
        ...

    def wait(self) -> None:
        """Wait until every receiver has the tensors."""
        ...

    def close(self) -> None:
        """Leave the group, which ends a broadcast that nobody receives."""
        ...


OpenGroup = Callable[[str, int, int], TransferGroup]
"""Opens the trainer's end from an address and a port that it listens on, and the number of members."""


class VllmGroup:
    """A group of vLLM's own NCCL communicator, on the current GPU."""

    def __init__(self, address: str, port: int, num_members: int) -> None:
        module = importlib.import_module("vllm.distributed.weight_transfer.nccl_common")
        where = {"master_address": address, "master_port": port, "world_size": num_members}
        self._communicator: Any = module.trainer_init(where)
        self._kept: list[torch.Tensor] = []

    def start(self, tensors: Iterable[torch.Tensor]) -> None:
        """See ``TransferGroup.start``."""
        stream = torch.cuda.current_stream()
        for tensor in tensors:
            self._kept.append(tensor.contiguous())  # a copy must outlive its broadcast
            self._communicator.broadcast(self._kept[-1], src=0, stream=stream)

    def wait(self) -> None:
        """See ``TransferGroup.wait``."""
        torch.cuda.current_stream().synchronize()
        self._kept = []

    def close(self) -> None:
        """See ``TransferGroup.close``."""
        self._communicator.destroy()


def require_nccl() -> None:
    """Refuse a machine from which no weights can be sent over NCCL.

    Raises:
        ConfigError: it has no GPU, or vLLM is not installed.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "rollout.sync = 'nccl' sends weights from GPU to GPU, and this trainer has no GPU; set rollout.sync = "
            "'weights', which sends them through rollout.sync_dir"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout.sync = 'nccl' needs the package vllm in the trainer's environment, in the server's version; "
            "install it, or set rollout.sync = 'weights'"
        )


@dataclass(slots=True)
class NcclTransfer:
    """The way of a model's weights to one server over a group that stays open.

    Attributes:
        open_group: opens the trainer's end.
    """

    open_group: OpenGroup = VllmGroup
    _group: TransferGroup | None = None

    def send(self, loaded: LoadedModel, server: Server, version: str) -> None:
        """Send every tensor of the model, adapters merged, while the server answers no request.

        Args:
            version: the name of the weights.

        Raises:
            ServerError: the server was not started for it, or did not take the weights.
        """
        if self._group is None:
            self._group = self._opened(server)
        group = self._group
        try:
            update_halted(server, version, lambda: _broadcast(group, loaded, server))
        except ServerError:
            self.close()  # its other end may wait for a broadcast that will not come
            raise

    def close(self) -> None:
        """Leave the group; the next model opens another one."""
        if self._group is not None:
            self._group.close()
        self._group = None

    def _opened(self, server: Server) -> TransferGroup:
        size = parsed(server, TITLE, WorldSize, get_dev(server, "/get_world_size")).world_size
        address, port = _own_address(server.url)
        _post(server, "/shutdown_weight_transfer_engine")  # a run that was killed leaves its group there
        told = {"master_address": address, "master_port": port, "rank_offset": 1, "world_size": 1 + size}
        answered = _in_thread(lambda: _post(server, "/init_weight_transfer_engine", {"init_info": told}))
        group = self.open_group(address, port, 1 + size)
        answered.result()
        return group


def _broadcast(group: TransferGroup, loaded: LoadedModel, server: Server) -> None:
    tensors = distinct(plain_state(loaded.model, tensors_of(loaded.model)))
    told = {
        "names": list(tensors),
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
    }
    _post(server, "/start_weight_update")
    answered = _in_thread(lambda: _post(server, "/update_weights", {"update_info": told}))
    group.start(tensors.values())
    answered.result()  # before the wait, which would never end if the server refused the tensors
    group.wait()
    _post(server, "/finish_weight_update")


def distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state without the second name of a tensor that has two, as in a file of tied weights."""
    seen: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in state.items():
        seen.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: state[name] for name in seen.values()}


def _post(server: Server, path: str, body: Mapping[str, Any] | None = None) -> None:
    try:
        server.post(path, body, once=True)
    except ServerError as error:
        raise ServerError(
            f"{error}; its weights may be broken from now on, so restart it (VLLM_SERVER_DEV_MODE=1, "
            """--weight-transfer-config '{"backend": "nccl"}'), then continue the run""",
            error.status,
        ) from None


def _in_thread(work: Callable[[], None]) -> Future[None]:
    """Run a request in a thread that does not keep the process alive."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:  # raised again by the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="weight-transfer", daemon=True).start()
    return future


def _own_address(url: str) -> tuple[str, int]:
    """Return the address of this machine that the server can reach, and a free port of it."""
    parts = urlsplit(url)
    family, kind, _, _, target = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        address = probe.getsockname()[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        return address, listener.getsockname()[1]
