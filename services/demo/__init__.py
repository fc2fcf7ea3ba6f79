"""The demo provider: a small HTTP server that speaks the OpenAI dialect, so that a fresh installation has somebody to talk to.

`completion.py` reads a request and writes the reply, a pure function; `app.py` is the HTTP around it; `__main__.py` starts it.
It stands where a real provider would stand: it knows no client token, no budget and no neighbour of the suite. The proxy
reaches it through `gateway/routing.py`.
"""
