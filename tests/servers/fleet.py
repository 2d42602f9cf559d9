"""The servers that a fleet of clients calls: models, git, packages, gRPC and WebSocket, each behind TLS on its own address.

Usage: fleet.py DIRECTORY CREDENTIAL HOST=ADDRESS...

DIRECTORY holds HOST.pem and HOST.key, git repositories below `git`, packages below `packages`. All want
CREDENTIAL. Every request is a line of JSON in DIRECTORY/requests: host, method, path and whether it had it.
"""
import asyncio
import json
import os
import ssl
import sys
from concurrent import futures
from pathlib import Path

import grpc
import websockets
from aiohttp import web

DIRECTORY, CREDENTIAL = Path(sys.argv[1]), sys.argv[2]
ADDRESSES = dict(pair.split("=", 1) for pair in sys.argv[3:])
LOG = (DIRECTORY / "requests").open("a", buffering=1)


def note(host, method, path, given):
    allowed = given in (CREDENTIAL, f"Bearer {CREDENTIAL}")
    LOG.write(json.dumps({"host": host, "method": method, "path": path, "credential": allowed}) + "\n")
    return allowed


@web.middleware
async def guarded(request, handler):
    given = request.headers.get("x-api-key") or request.headers.get("authorization")
    if not note(request.host, request.method, request.path, given):
        return web.json_response({"error": {"message": "no credential"}}, status=401)
    return await handler(request)


async def events(request, parts):
    """Server-sent events, each sent by itself."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for kind, data in parts:
        text = data if isinstance(data, str) else json.dumps(data)
        await response.write(f"event: {kind}\ndata: {text}\n\n".encode() if kind else f"data: {text}\n\n".encode())
    await response.write_eof()
    return response


async def completions(request):
    asked = await request.json()
    common = {"id": "c1", "created": 1, "model": asked["model"]}

    def choice(key, **value):
        return {**common, "choices": [{"index": 0, "finish_reason": None, key: value}]}

    if asked.get("stream"):
        parts = [(None, choice("delta", content=word) | {"object": "chat.completion.chunk"}) for word in ("Hel", "lo.")]
        return await events(request, [*parts, (None, "[DONE]")])
    answer = choice("message", role="assistant", content="Hello.")
    return web.json_response(answer | {"object": "chat.completion"})


async def messages(request):
    asked = await request.json()
    usage = {"input_tokens": 3, "output_tokens": 2}
    message = {"id": "m1", "type": "message", "role": "assistant", "model": asked["model"], "usage": usage}
    message |= {"stop_reason": None, "stop_sequence": None, "content": []}
    if not asked.get("stream"):
        done = {"content": [{"type": "text", "text": "Hello."}], "stop_reason": "end_turn"}
        return web.json_response(message | done)
    block = {"index": 0}
    parts = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "content_block": {"type": "text", "text": ""}} | block,
        *({"type": "content_block_delta", "delta": {"type": "text_delta", "text": t}} | block for t in ("Hel", "lo.")),
        {"type": "content_block_stop"} | block,
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return await events(request, [(part["type"], part) for part in parts])


async def git(request):
    """git http-backend, by CGI (RFC 3875)."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(DIRECTORY / "git"),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REMOTE_USER": "somebody",
        "REQUEST_METHOD": request.method,
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query_string,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
        "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    pipe = asyncio.subprocess.PIPE
    backend = await asyncio.create_subprocess_exec("git", "http-backend", env=environment, stdin=pipe, stdout=pipe)
    out, _ = await backend.communicate(await request.read())
    head, _, body = out.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    status = int(headers.pop("Status", "200 OK").split(" ")[0])
    return web.Response(status=status, headers=headers, body=body)


async def packages(request):
    path = request.match_info["path"].rstrip("/")
    at = DIRECTORY / "packages" / path
    if at.is_dir():
        at = at / "index"
    kind = {"npm": "application/json", "simple": "text/html"}.get(path.split("/")[0])
    if not at.is_file():
        raise web.HTTPNotFound()
    return web.Response(body=at.read_bytes(), content_type=kind or "application/octet-stream")


def admit(connection, request):
    """Answers the handshake of who has no credential."""
    if not note("live.example", "GET", request.path, request.headers.get("authorization")):
        return connection.respond(401, "no credential\n")
    return None


async def echo(socket):
    async for message in socket:
        await socket.send(f"echo: {message}")


def greeter(address, key, certificate):
    def guard(context, path):
        given = dict(context.invocation_metadata()).get("authorization")
        if not note("greeter.example", "POST", path, given):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no credential")

    def unary(name, context):
        guard(context, "/greet.Greeter/Unary")
        return b"Hello, " + name

    def down(name, context):
        guard(context, "/greet.Greeter/Down")
        yield from (b"Hello, " + name, b"and again")

    def up(names, context):
        guard(context, "/greet.Greeter/Up")
        return b"Hello, " + b" and ".join(names)

    def both(names, context):
        guard(context, "/greet.Greeter/Both")
        for name in names:
            yield b"Hello, " + name

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Forget": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greet.Greeter", handlers),))
    server.add_secure_port(f"{address}:443", grpc.ssl_server_credentials([(key, certificate)]))
    server.start()
    return server


def files(host):
    return DIRECTORY / f"{host}.pem", DIRECTORY / f"{host}.key"


def tls(host):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files(host))
    return context


ROUTES = {
    "api.openai.com": [web.post("/v1/chat/completions", completions)],
    "api.anthropic.com": [web.post("/v1/messages", messages)],
    "git.example": [web.route("*", "/{path:.*}", git)],
    "packages.example": [web.get("/{path:.*}", packages)],
}


async def rude(reader, writer):
    """Hangs up in place of an answer."""
    await reader.read(1)
    writer.transport.abort()


async def silent(reader, writer):
    """Takes the request and says nothing."""
    await reader.read()


async def main():
    certificate, key = (path.read_bytes() for path in files("greeter.example"))
    standing = [greeter(ADDRESSES["greeter.example"], key, certificate)]
    for host, routes in ROUTES.items():
        application = web.Application(middlewares=[guarded])
        application.add_routes(routes)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, ADDRESSES[host], 443, ssl_context=tls(host)).start()
    live = websockets.serve(echo, ADDRESSES["live.example"], 443, ssl=tls("live.example"), process_request=admit)
    for host, serve in {"rude.example": rude, "silent.example": silent}.items():
        standing.append(await asyncio.start_server(serve, ADDRESSES[host], 443, ssl=tls(host)))
    async with live:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    del standing


asyncio.run(main())
