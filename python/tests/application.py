"""The application that test_servers.py runs: a cache that is opened before the workers fork."""

import os

import whycache
from whycache import aio

cache = whycache.Cache(os.environ["TEST_LOG"], state_path=os.environ["TEST_STATE"])
cache.set(b"opened", b"%d" % os.getpid())


def _answer(path: str) -> bytes:
    if path == "/write":
        return b"%d %d" % (os.getpid(), cache.set(b"worker-%d" % os.getpid(), b"1"))
    cache.update()
    workers = len(list(cache.keys(prefix=b"worker-")))
    return b"%d %s %d" % (os.getpid(), cache[b"opened"], workers)


def wsgi(environ, start_response):
    """For sync and gthread workers, and for uwsgi."""
    body = _answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


_async_cache = aio.Cache(os.environ["TEST_LOG"], state_path=os.environ["TEST_STATE"])


async def asgi(scope, receive, send):
    """For uvicorn workers."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/write":
        update_id = await _async_cache.set(b"worker-%d" % os.getpid(), b"1")
        body = b"%d %d" % (os.getpid(), update_id)
    else:
        await _async_cache.update()
        workers = len(list(_async_cache.keys(prefix=b"worker-")))
        body = b"%d %s %d" % (os.getpid(), _async_cache[b"opened"], workers)
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
