"""The HTTP door of admin: a real aiohttp server before a real admin server, both on loopback."""

from __future__ import annotations

import json

from tests.admin.door import Door


async def test_what_people_type_after_a_login_makes_tokens(door: Door) -> None:
    """`curl -d` sends a form type, and no header of its own."""
    for body in (
        '{"max_amount": 50}',
        '{"token": "new-token"}',
        '{"expires_at": "2027-01-31"}',
        '{"max_amount": 100.0, "allowed_models": ["gpt-4", "claude-3"]}',
        "{}",
    ):
        answer = await door.send("POST", "/admin/tokens", body, content_type="application/x-www-form-urlencoded")
        assert answer.status == 201, answer.text
        assert answer.json["token"]
    assert answer.json["name"] == f"token-{answer.json['id']}"
    listed = (await door.send("GET", "/admin/tokens")).json
    assert [token["id"] for token in listed["tokens"]] == [5, 4, 3, 2, 1]
    assert listed["next_page_token"] is None
    assert listed["tokens"][1]["max_amount"] == 100.0
    assert listed["tokens"][1]["allowed_models"] == ["gpt-4", "claude-3"]
    assert listed["tokens"][2]["expires_at"] == "2027-01-31T23:59:59.999999Z"
    assert listed["tokens"][3]["weak"] is True
    assert listed["tokens"][3]["display_hint"] == ""
    assert "new-token" not in json.dumps(listed)
