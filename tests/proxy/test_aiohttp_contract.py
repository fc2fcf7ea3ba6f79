"""The private parts of aiohttp that the proxy uses are there, and each that is used is on the list."""

from __future__ import annotations

import ast
import asyncio
import re
from importlib.metadata import version
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler
from aiohttp.web_protocol import RequestHandler

import services.proxy

LISTED = re.findall(r"`(\w+)\.(_\w+)`", services.proxy.__doc__ or "")
FILES = sorted(Path(services.proxy.__file__).parent.rglob("*.py"))
CLASSES: dict[str, type] = {
    "RequestHandler": RequestHandler,
    "ResponseHandler": ResponseHandler,
    "StreamResponse": web.StreamResponse,
    "TCPConnector": aiohttp.TCPConnector,
}


def test_each_private_part_on_the_list_is_there() -> None:
    async def look() -> list[str]:
        connector = aiohttp.TCPConnector()
        made = {
            "RequestHandler": RequestHandler(web.Server(web.Response), loop=asyncio.get_running_loop()),
            "ResponseHandler": ResponseHandler(asyncio.get_running_loop()),
            "StreamResponse": web.StreamResponse(),
            "TCPConnector": connector,
        }
        gone = [f"{owner}.{name}" for owner, name in LISTED if not hasattr(made[owner], name)]
        await connector.close()
        return gone

    gone = asyncio.run(look())
    assert gone == [], f"aiohttp {version('aiohttp')} has these no more; services/proxy/__init__.py says what they are for"


def test_nothing_else_that_is_private_to_aiohttp_is_used() -> None:
    private = {name for owner in CLASSES.values() for base in owner.__mro__ for name in vars(base) if name.startswith("_")}
    private |= {name for owner in CLASSES.values() for base in owner.__mro__ for name in getattr(base, "__slots__", ())}
    private = {name for name in private if name.startswith("_") and not name.startswith("__")}
    listed, found = {name for _, name in LISTED}, set[tuple[str, str]]()
    for path in FILES:
        tree = ast.parse(path.read_text())
        if "aiohttp" not in path.read_text():
            continue
        ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        ours |= {
            target.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == "__init__"
            for target in ast.walk(node)
            if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
        }
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found |= {(path.name, name) for name in (used & private) - listed - ours}
    assert found == set(), "services/proxy/__init__.py does not list these"
