"""Ranks: the processes of a tensor-parallel model, each with a shard of every layer.

Rank 0 is the engine's process. It schedules and samples, and sends each plan as ints to the other
ranks, over a pipe each; all ranks synchronise in the forward pass's all-reduces:

    engine, rank 0   -- ForwardPlan -->   rank 1 .. N-1
         \\________ torch.distributed ________/

The ranks live and die together: when another rank exits, rank 0 ends its process at once and the
supervisor restarts the engine; when rank 0 exits, all other ranks exit.
"""

import atexit
import contextlib
import logging
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, NoReturn

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from container.errors import ModelLoadError
from container.ipc.heartbeat import HeartbeatLimits, HeartbeatMonitor
from container.lifecycle.child import FINAL_EXIT_CODES, cause
from container.model.forward_batch import ForwardPlan
from container.settings.process_env import RANKS_FOLDER

log = logging.getLogger(__name__)

WATCH_S = 0.1
# How long a rank waits for other ranks, which may load their weights from a slow disk.
GROUP_TIMEOUT = timedelta(minutes=10)
RANK_DIED = 6


class RankArgs(msgspec.Struct, frozen=True):
    """Arguments of a rank's process, passed as JSON on its command line.

    `dtype` is torch's name of the weights' format; `gpu` is the index of its GPU, None on a CPU;
    `store` is the rendezvous file of the process group; `heartbeat_fd` is a pipe for heartbeats;
    `check_ids` is the prompt of the model's checks.
    """

    model_path: str
    dtype: str
    rank: int
    ranks: int
    gpu: int | None
    store: str
    parent_pid: int
    heartbeat_fd: int = -1
    check_ids: list[int] | None = None


class InitKVCache(msgspec.Struct, frozen=True, array_like=True, tag="cache"):
    """Rank 0 to the other ranks: create the KV cache, and capture decodes of these sizes.

    `max_blocks` is the number of blocks of the longest sequence; `num_slots` that of host slots.
    """

    num_blocks: int
    block_size: int
    capture_sizes: list[int]
    max_blocks: int
    num_slots: int


ToRank = InitKVCache | ForwardPlan

_decode = msgspec.msgpack.Decoder(ToRank).decode
_encode = msgspec.msgpack.Encoder().encode
_LENGTH = struct.Struct("<I")  # before each message


class Ranks:
    """Owns the other ranks' processes and the pipes to them; exists in rank 0 only."""

    def __init__(
        self,
        model_path: Path,
        dtype: str,
        devices: Sequence[torch.device],
        check_ids: list[int] | None = None,
        silence_s: float = 0.0,
    ) -> None:
        """Start a process for each device but the first, and form the process group.

        A rank that sends no heartbeat for `silence_s` seconds ends all; 0: never. Raises
        ModelLoadError.
        """
        self._is_stopping = False
        store = tempfile.mkdtemp(prefix="ranks-", dir=os.environ.get(RANKS_FOLDER)) + "/store"
        orders = [
            RankArgs(
                os.fspath(model_path),
                dtype,
                rank,
                len(devices),
                device.index,
                store,
                os.getpid(),
                check_ids=check_ids,
            )
            for rank, device in enumerate(devices)
        ]
        self._threads = max(1, torch.get_num_threads() // len(devices))
        limits = HeartbeatLimits(silence_s, 0.0)
        self._monitors = [HeartbeatMonitor(limits) for _ in orders[1:]]
        self._processes = [
            self._start(order, monitor)
            for order, monitor in zip(orders[1:], self._monitors, strict=True)
        ]
        atexit.register(self._stop)
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        if devices[0].type == "cpu":
            torch.set_num_threads(self._threads)
        join_group(orders[0])

    def broadcast(self, message: ToRank) -> None:
        """Send a message to all other ranks."""
        frame = _encode(message)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(_LENGTH.pack(len(frame)) + frame)
            process.stdin.flush()

    def _start(self, order: RankArgs, monitor: HeartbeatMonitor) -> "subprocess.Popen[bytes]":
        order = msgspec.structs.replace(order, heartbeat_fd=monitor.fd)
        encoded_args = msgspec.json.encode(order).decode()
        threads = {"OMP_NUM_THREADS": str(self._threads)} if order.gpu is None else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "container", "rank", encoded_args],
            env={**os.environ, **threads},
            stdin=subprocess.PIPE,
            pass_fds=(monitor.fd,),
        )
        monitor.close_child_end()
        return process

    def _watch(self) -> None:
        while not self._is_stopping:
            for rank, process in enumerate(self._processes, 1):
                if process.poll() is not None and not self._is_stopping:
                    self._leave(rank, f"exited ({cause(process.returncode)})", process.returncode)
                if (hang := self._monitors[rank - 1].hang()) and not self._is_stopping:
                    self._leave(rank, hang, RANK_DIED)
            time.sleep(WATCH_S)

    def _leave(self, rank: int, event: str, code: int) -> NoReturn:
        """End this process, which may be waiting for a rank that has exited or hangs."""
        log.error("rank %d: %s; stopping all ranks", rank, event)
        self._stop()
        logging.shutdown()
        os._exit(code if code in FINAL_EXIT_CODES else RANK_DIED)

    def _stop(self) -> None:
        self._is_stopping = True
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def join_group(order: RankArgs) -> None:
    """Join the process group of all ranks. Raises ModelLoadError if that fails."""
    # transformers reads these from the environment.
    os.environ |= {
        "RANK": str(order.rank),
        "WORLD_SIZE": str(order.ranks),
        "LOCAL_RANK": str(order.rank if order.gpu is None else order.gpu),
    }
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all on this machine
    device = None if order.gpu is None else torch.device("cuda", order.gpu)
    if device is not None:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "gloo" if device is None else "nccl",
            store=FileStore(order.store, order.ranks),
            rank=order.rank,
            world_size=order.ranks,
            timeout=GROUP_TIMEOUT,
            device_id=device,
        )
    except (RuntimeError, ValueError) as error:
        raise ModelLoadError(
            f"could not initialize the process group of {order.ranks} ranks: {error}"
        ) from error


def messages(pipe: BinaryIO) -> Iterator[ToRank]:
    """Yield the messages of rank 0 until it closes the pipe."""
    while head := pipe.read(_LENGTH.size):
        frame = pipe.read(*_LENGTH.unpack(head))
        yield _decode(frame)
