"""L15: a provider that reads keys without regard to case serves and bills nothing that was not checked."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import aiohttp
import pytest

from tests.fakes.call import read_ledger
from tests.prove.calls import insist
from tests.suite.conftest import RATES

CHECKED: dict[str, Any] = {
    "model": "dear-model",
    "models": ["dear-model"],
    "messages": [{"role": "user", "content": "x" * 5000}],
    "stream": True,
    "stream_options": {"include_usage": False},
    "max_tokens": 10**6,
    "max_completion_tokens": 10**6,
    "n": 100,
    "best_of": 100,
    "service_tier": "priority",
    "tools": [{"type": "web_search"}],
    "web_search_options": {},
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["audio"],
    "audio": {"voice": "v", "format": "wav"},
    "thinking": {"budget_tokens": 10**6},
    "reasoning": {"max_tokens": 10**6},
}
NESTED: tuple[dict[str, Any], ...] = (
    {"stream": True, "stream_options": {"include_usage": True, "Include_Usage": False}},
    {"thinking": {"budget_tokens": 1, "Budget_Tokens": 10**6}},
    {"reasoning": {"max_tokens": 1, "MAX_TOKENS": 10**6}},
    {"tools": [{"type": "function", "Type": "web_search"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "TYPE": "image_url"}]}]},
)
SPELLINGS = (str.upper, str.title, lambda key: key.replace("s", "\u017f", 1), lambda key: key.replace("k", "\u212a", 1))
GOOD = {"model": "gpt-test", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


def bodies() -> list[bytes]:
    """Each checked key in other spellings: beside the right one, before and behind it, and alone; then the nested ones."""
    found = [json.dumps(GOOD | more).encode() for more in NESTED]
    for key, value in CHECKED.items():
        for spelling in SPELLINGS:
            alike = {spelling(key): value} if spelling(key) != key else {}
            if alike:
                alone = {name: other for name, other in GOOD.items() if name != key}
                found += [json.dumps(body).encode() for body in (GOOD | alike, alike | GOOD, alone | alike)]
    return found


@pytest.mark.proves("L15")
async def test_a_key_in_another_case_is_refused_by_name_and_never_served(site, proof):
    site = site("auth", "proxy")
    token = site.token(max_amount=1, allowed_models="gpt-test")
    answers: Counter[str] = Counter()
    sent, nameless = bodies(), []
    async with aiohttp.ClientSession(trust_env=False) as session:
        for number, body in enumerate(sent):
            url = f"{site.doors[number % len(site.doors)]}/chat/completions"
            async with session.post(url, data=body, headers={"Authorization": f"Bearer {token}"}) as response:
                error = (await response.json()).get("error", {})
            answers[f"{response.status} {error.get('code')}"] += 1
            name = str(error.get("param")).rpartition(".")[2]
            if name in {"", "None"} or (name.isascii() and name.islower()):  # no key that only looks like one is written so
                nameless.append((body[:80], error))
    proof.equals(f"answers to {len(sent)} bodies with a key in another case", dict(answers), {"400 invalid_request": len(sent)})
    proof.equals("of them that do not name the key", nameless[:3], [])
    proof.equals("calls upstream", len(read_ledger(site.provider.ledger)), 0)
    controls = await insist(site.doors, token, proof.size(20, 4), model="gpt-test")
    proof.equals("calls without such a key that pass", sum(one.whole for one in controls), len(controls))
    proof.equals("calls upstream then", len(read_ledger(site.provider.ledger)), len(controls))
    site.settle(RATES, controls)
