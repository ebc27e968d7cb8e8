"""Many clients made of the real python-libjuju, which stay connected.

Argument: file of the authority's certificate. Takes one JSON command a line, says one JSON event a line.
"""

import asyncio
import json
import logging
import sys
from pathlib import Path

from juju.controller import Controller

AT_ONCE = 6


async def connect(endpoint, cacert, turn):
    async with turn:
        controller = Controller()
        await controller.connect(endpoint=endpoint, username="admin", password="secret", cacert=cacert)
        connection = controller.connection()
        answer = await connection.rpc({"type": "Test", "request": "Peer", "version": 1})
        return controller, {"endpoint": connection.endpoint, **answer["response"]}


async def main(authority):
    logging.basicConfig(format="libjuju: %(name)s: %(message)s", level=logging.ERROR)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    cacert, turn, all_of_them = Path(authority).read_text(), asyncio.Semaphore(AT_ONCE), []
    while line := await commands.readline():
        command = json.loads(line)
        joining = [connect(command["endpoint"], cacert, turn) for _ in range(command["count"])]
        joined = await asyncio.gather(*joining, return_exceptions=True)
        clients = [one for one in joined if not isinstance(one, BaseException)]
        failed = [repr(one) for one in joined if isinstance(one, BaseException)]
        all_of_them += clients
        print(json.dumps({"event": "joined", "clients": [told for _, told in clients], "failed": failed}), flush=True)


asyncio.run(main(*sys.argv[1:]))
