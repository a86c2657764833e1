"""Ask a server from inside its container: with no network, nothing else reaches it."""

from __future__ import annotations

from engine import Container, Engine

_CHAT = """
import json, sys, urllib.request
body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
headers = {"Content-Type": "application/json"}
url = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions"
request = urllib.request.Request(url, json.dumps(body).encode(), headers)
print(json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["message"]["content"])
"""
# A health check a second, and one failure is enough, from the start (0 would mean the image's own start period).
HEALTH = ("--health-interval=1s", "--health-retries=1", "--health-start-period=1ms")


def chat_inside(container: Container, port: int = 30000) -> str:
    """Return the model's answer, asked for by the image's own Python."""
    return container.exec("python3", "-c", _CHAT, str(port), timeout_s=150, check=True).stdout.strip()


def container_of(engine: Engine, name: str) -> Container:
    """Return the container of that name or id, which something else has started."""
    return Container(engine, name)
