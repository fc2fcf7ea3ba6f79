"""What guards the reading of bodies, broken: the order of checks, keys that look alike, bounds of text."""

from __future__ import annotations

from tests.prove.mutants.mutant import Mutant

_ORDER = "tests/proxy/test_order_of_checks.py"

OF_BODIES = (
    Mutant(
        "lookalike-key-passes",
        "A key that differs from a checked one in case only does not pass.",
        "services/proxy/lookalikes.py",
        "        if folded in checked or ",
        "        if False and folded in checked or ",
        (
            "tests/proxy/test_lookalike_keys.py::test_a_key_that_only_looks_like_a_checked_one_is_refused_by_name",
            "tests/proxy/test_lookalike_keys.py::test_a_model_that_is_only_named_in_another_case_is_refused",
        ),
    ),
    Mutant(
        "kelvin-sign-is-no-k",
        "Letters beyond ASCII that fold to ASCII ones are folded.",
        "services/proxy/lookalikes.py",
        "    return key.lower() if key.isascii() else key.translate(_SPECIAL).lower()\n",
        "    return key.lower() if key.isascii() else key.upper().lower()[:0]\n",
        ("tests/proxy/test_lookalike_keys.py::test_folding_knows_the_letters_beyond_ascii_that_fold_to_ascii",),
    ),
    Mutant(
        "body-before-token",
        "What is wrong with a body is told to known tokens only.",
        "services/proxy/chat.py",
        "            if not known:\n                await self._look(exchange, token)\n            raise\n",
        "            raise\n",
        (f"{_ORDER}::test_an_unknown_token_is_refused_as_such_whatever_is_wrong_with_the_body",),
    ),
    Mutant(
        "costly-body-of-a-stranger",
        "A costly body is read for known tokens only.",
        "services/proxy/chat.py",
        "            if not known and is_costly(raw):\n",
        "            if False:\n",
        (f"{_ORDER}::test_a_costly_body_of_an_unknown_sender_is_not_read",),
    ),
    Mutant(
        "guesser-asks-on",
        "An address above the limit of unknown tokens costs auth nothing.",
        "services/proxy/gate.py",
        "        self._strangers.check(address, key)\n",
        "",
        (f"{_ORDER}::test_an_address_above_the_limit_is_refused_without_a_question_and_its_good_tokens_pass",),
    ),
    Mutant(
        "marks-do-not-lengthen",
        "The bound of a text covers what combining marks do to its normal form.",
        "gateway/text_bound.py",
        "_PER_MARK: Final = 4\n",
        "_PER_MARK: Final = 0\n",
        ("tests/gateway/test_text_bound.py::test_the_bound_covers_the_text_and_its_normal_form_wherever_it_is_cut",),
    ),
    Mutant(
        "infinite-number-passes",
        "A number that no double holds is refused.",
        "services/proxy/strict_json.py",
        "    if number in _NO_NUMBERS:\n",
        "    if False:\n",
        ("tests/proxy/test_edge_http.py::test_a_body_that_is_not_a_chat_completion_reaches_nobody",),
    ),
)
