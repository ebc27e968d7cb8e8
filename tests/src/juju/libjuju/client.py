"""One client made of the real python-libjuju: connects, works when told to, and says what becomes of its connection.

Arguments: endpoint, file of the authority's certificate. Takes one JSON command a line, says one JSON event a line.
"""

import asyncio
import json
import logging
import sys
import time
from pathlib import Path

from juju.client import client
from juju.controller import Controller

PAUSE_S = 0.2  # between two rounds of requests


def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def ms_since(start):
    return (time.monotonic() - start) * 1000


async def work(controller):
    """A request of each kind; the stand-in's answer says who served them, and whom it saw."""
    connection = controller.connection()
    await client.PingerFacade.from_connection(connection).Ping()
    models = await controller.list_models()
    answer = await connection.rpc({"type": "Test", "request": "Peer", "version": 1})
    return {"endpoint": connection.endpoint, "models": models, **answer["response"]}


def watch(controller):
    """Tells of breaks. The library calls its own `reconnect` when it notices one; nothing here does."""
    connection = controller.connection()
    reconnect = connection.reconnect

    async def watched():
        monitor = connection.monitor
        if monitor.reconnecting.locked() or monitor.close_called.is_set():
            return await reconnect()  # which does nothing then
        start = time.monotonic()
        tell("disconnected")
        try:
            await reconnect()
            tell("reconnected", ms=ms_since(start), **await work(controller))
        except Exception as error:
            tell("failed", message=f"reconnect after {ms_since(start):.0f} ms: {error!r}")
            raise

    connection.reconnect = watched


async def ping(controller, seconds):
    """Rounds of requests for so long, at least one."""
    rounds, slowest, start = 0, 0.0, time.monotonic()
    while rounds == 0 or time.monotonic() - start < seconds:
        if rounds:
            await asyncio.sleep(PAUSE_S)
        began = time.monotonic()
        answer = await work(controller)
        rounds, slowest = rounds + 1, max(slowest, ms_since(began))
    tell("pinged", rounds=rounds, slowest_ms=slowest, **answer)


async def main(endpoint, authority):
    logging.basicConfig(format="libjuju: %(name)s: %(message)s", level=logging.WARNING)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)

    controller, start = Controller(), time.monotonic()
    cacert = Path(authority).read_text()
    await controller.connect(endpoint=endpoint, username="admin", password="secret", cacert=cacert)
    took = ms_since(start)
    watch(controller)
    tell("connected", ms=took, **await work(controller))

    # An end of the input, too, is the end.
    while line := await commands.readline():
        command = json.loads(line)
        if command["cmd"] == "quit":
            break
        try:
            await ping(controller, command["seconds"])
        except Exception as error:
            tell("failed", message=f"request: {error!r}")
    await controller.disconnect()


try:
    asyncio.run(main(*sys.argv[1:]))
except Exception as error:
    tell("failed", message=repr(error))
    raise
