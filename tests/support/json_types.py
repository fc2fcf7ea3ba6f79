"""A value of every JSON type, as text, for fields that expect another one."""

from __future__ import annotations

VALUES = (
    *(
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1",
        "1.5",
        "1e2",
        "-0.0",
        "1e308",
        "1e-400",
        "1e400",
        "9" * 30,
        "9" * 400,
        "1" * 1100,
    ),
    *('""', '"x"', '"1"', '" "', '"\\u0000"', '"\\ud83d\\ude00"', '"\\ud83d"', '"' + "x" * 3000 + '"', '"\u00e9\ufdfa"'),
    *("[]", "[[]]", "[null]", "[1]", '["x"]', "[{}]", '["x", 1, null, [], {}]', "[" * 50 + "]" * 50, "[" * 200 + "]" * 200),
    *("{}", '{"": ""}', '{"a": null}', '{"type": []}', '{"url": {}}', '{"x": [1.5, {"y": [true]}]}', "[1e308, 1e-308]"),
)
