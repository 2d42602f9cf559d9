import asyncio
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1]) as socket:
        await socket.send("hello")
        print(await socket.recv())


asyncio.run(main())
