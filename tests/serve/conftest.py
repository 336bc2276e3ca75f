from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow.flight as fl
import pytest

from snapshot_assets.serve.node import NodeSettings, ReaderNode
from tests.serve.standin import StandInReader


@pytest.fixture
def reader() -> StandInReader:
    return StandInReader()


@pytest.fixture
def start(reader: StandInReader) -> Iterator[Callable[..., ReaderNode]]:
    """Starts a node over the stand-in, on free ports, with these settings."""
    with ExitStack() as nodes:

        def start_node(**settings: Any) -> ReaderNode:
            values = {"port": 0, "http_port": 0, "stop_timeout": 0.5} | settings
            return nodes.enter_context(ReaderNode(reader, ["orders", "planes"], NodeSettings(**values)))

        yield start_node


@pytest.fixture
def node(start: Callable[..., ReaderNode]) -> ReaderNode:
    return start()


@pytest.fixture
def client(node: ReaderNode) -> Iterator[fl.FlightClient]:
    with fl.connect(node.flight_url) as client:
        yield client
