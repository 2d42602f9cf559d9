import asyncio
import sys

import aiohttp


async def main():
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        async with session.get(sys.argv[1]) as answer:
            print(await answer.json())


asyncio.run(main())
