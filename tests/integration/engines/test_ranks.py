"""A served model that is split over two ranks: answers, errors, and what happens when one dies."""

from pathlib import Path

import psutil
import requests

from tests.support.rank_engines import save
from tests.support.servers import Server, SharedServers, spawn

SPLIT = {"TENSOR_PARALLEL": "2", "SM_NUM_GPUS": "0", "DTYPE": "float32"}
ASK = {"inputs": "What is deep learning?", "parameters": {"max_new_tokens": 20}}


def _ranks(server: Server) -> list[psutil.Process]:
    return [child for child in server.engine().children() if "rank" in child.cmdline()]


def test_a_rank_that_dies_takes_the_group_down_and_all_come_back(
    shared_servers: SharedServers,
) -> None:
    server = shared_servers.get(**SPLIT)
    before = requests.post(f"{server.url}/generate", json=ASK, timeout=60)
    assert before.ok, before.text
    assert requests.get(f"{server.url}/info", timeout=5).json()["tensor_parallel"] == 2
    engine, (rank,) = server.engine(), _ranks(server)
    rank.kill()
    psutil.wait_procs([engine], timeout=10)
    assert not engine.is_running()
    assert "rank 1: exited (signal 9)" in server.log
    server.wait_ready()
    after = requests.post(f"{server.url}/generate", json=ASK, timeout=60)
    assert after.json() == before.json()


def test_ranks_exit_with_the_engine_and_the_server(shared_servers: SharedServers) -> None:
    server = shared_servers.get(**SPLIT)
    ranks = _ranks(server)
    server.engine().kill()
    assert not psutil.wait_procs(ranks, timeout=10)[1]
    server.wait_ready()
    ranks = _ranks(server)
    assert server.stop() == 0
    assert not psutil.wait_procs(ranks, timeout=10)[1]


def test_a_model_that_cannot_be_sharded_ends_the_start(tmp_path: Path) -> None:
    reasons = {
        "bloom": "TENSOR_PARALLEL=2 cannot work here: transformers has no plan",
        "t5": "TENSOR_PARALLEL=2 cannot work here: it has an encoder",
        "qwen3_next": "TENSOR_PARALLEL=2 cannot work here: it has layers that are not paged",
    }
    started = [
        spawn(tmp_path / f"{name}.log", save(name, tmp_path / name), **SPLIT) for name in reasons
    ]
    adapters = spawn(tmp_path / "log", LORA_ADAPTERS="one=/nowhere", **SPLIT)
    for server, reason in zip(started, reasons.values(), strict=True):
        assert server.process.wait(120) == 2, server.log
        assert reason in server.log
    assert adapters.process.wait(120) == 2, adapters.log
    assert "LORA_ADAPTERS is not supported for a model on several devices" in adapters.log
