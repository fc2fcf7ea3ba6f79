"""The ledger's guards, broken: budgets, one booking for each call, rounding, limits, leases, locks, syncs, revocation."""

from __future__ import annotations

from tests.prove.mutants.mutant import Mutant

_LEDGER = "tests/gateway/test_ledger.py"
_LIMITS = "tests/gateway/test_ledger_limits.py"
_POSTGRES = "tests/gateway/test_postgres.py"
_QUOTA = "tests/gateway/test_quota.py"
_PRICING = "tests/gateway/test_pricing.py"
_SWEEPER = "tests/auth/test_sweeper.py"
_LIFE = "tests/gateway/test_token_life.py"
_GUARDS = "tests/gateway/test_guards.py"

BUDGET = (
    Mutant(
        "jump-followed-at-once",
        "A jump of the wall clock is followed only once it has held for a minute.",
        "gateway/clock.py",
        "            elif monotonic - self._since >= self.PROOF:\n",
        "            elif True:\n",
        ("tests/gateway/test_steady_clock.py::test_a_jump_is_followed_only_when_it_has_held_for_a_minute",),
    ),
    Mutant(
        "period-by-the-wall-clock",
        "Periods begin by the steady clock.",
        "gateway/storage/batch_rows.py",
        "            token.roll(self._now)\n",
        "            token.roll(datetime.fromisoformat('2040-01-01T00:00:00+00:00'))\n",
        ("tests/gateway/test_steady_clock.py::test_calls_that_settle_while_the_wall_clock_is_ahead_begin_no_period",),
    ),
    Mutant(
        "future-period-kept",
        "A period that begins in the future heals.",
        "gateway/limits.py",
        "    if started > to_text(now + AHEAD):\n",
        "    if False:\n",
        ("tests/gateway/test_steady_clock.py::test_a_period_that_begins_in_the_future_heals_when_the_clock_is_right",),
    ),
    Mutant(
        "ended-session-not-written",
        "The end of a session is written into its row.",
        "gateway/storage/sessions.py",
        "        if found:\n            with self._db.write():\n",
        "        if False:\n            with self._db.write():\n",
        ("tests/admin/test_sessions.py::test_a_session_that_has_ended_stays_so_when_the_clock_is_set_back",),
    ),
    Mutant(
        "budget-without-holds",
        "A strict budget counts the money that calls in flight hold.",
        "gateway/quota.py",
        "    free = left - token.held_nanos\n",
        "    free = left\n",
        (
            f"{_QUOTA}::test_a_grant_never_takes_more_than_what_is_free",
            f"{_LEDGER}::test_five_hundred_at_once_pass_a_hundred_times[sqlite]",
        ),
    ),
    Mutant(
        "budget-not-compared",
        "What a call may cost is compared with the money that is free.",
        "gateway/quota.py",
        "    if (held := _hold(bounds, wanted)) <= free:\n",
        "    if (held := _hold(bounds, wanted)) <= maximum:\n",
        (
            f"{_QUOTA}::test_a_grant_never_takes_more_than_what_is_free",
            f"{_LEDGER}::test_five_hundred_at_once_pass_a_hundred_times[sqlite]",
        ),
    ),
    Mutant(
        "hold-not-taken",
        "A grant sets its money aside.",
        "gateway/storage/batch.py",
        "        token.held_nanos += decision.held_nanos\n",
        "",
        (f"{_LEDGER}::test_a_grant_holds_its_bound_until_the_report_charges_what_was_used[sqlite]",),
    ),
    Mutant(
        "hold-kept-on-release",
        "A call that was not made gives its hold back.",
        "gateway/storage/batch.py",
        "            token.held_nanos -= row.held_nanos\n",
        "            token.held_nanos -= row.held_nanos if decided.state is State.SETTLED else 0\n",
        (f"{_LEDGER}::test_released_costs_nothing_and_keeps_the_row_with_its_status[sqlite]",),
    ),
    Mutant(
        "admissions-first",
        "Settlements of a batch are booked before its admissions are decided.",
        "gateway/storage/batch.py",
        "        for report in settlements:\n"
        "            self._outcome.settlements.append(_answer(self._settle, report))\n"
        "        for admission in admissions:\n"
        "            self._outcome.admissions.append(_answer(self._admit, admission))\n",
        "        for admission in admissions:\n"
        "            self._outcome.admissions.append(_answer(self._admit, admission))\n"
        "        for report in settlements:\n"
        "            self._outcome.settlements.append(_answer(self._settle, report))\n",
        (f"{_LEDGER}::test_settlements_of_a_batch_give_their_money_back_before_admissions_are_decided[sqlite]",),
    ),
    Mutant(
        "implausible-usage-believed",
        "Usage that nobody can have meant is charged at the hold.",
        "gateway/settlement.py",
        "    if not is_plausible(report.usage):\n",
        "    if False:\n",
        (f"{_LEDGER}::test_implausible_usage_is_charged_at_the_hold",),
    ),
    Mutant(
        "price-of-today",
        "A call is charged at the price that it was admitted at.",
        "gateway/storage/batch.py",
        "rates=self._prices.rates(price_id))\n        self._book(",
        "rates=self._prices.find(provider, model).rates)\n        self._book(",
        (f"{_LEDGER}::test_the_price_of_the_admission_is_the_price_of_the_settlement[sqlite]",),
    ),
)

ONCE = (
    Mutant(
        "same-report-twice",
        "The same report again is not booked again.",
        "gateway/storage/batch.py",
        "        if row.state in (State.SETTLED, State.RELEASED):\n",
        "        if False:\n",
        (f"{_LEDGER}::test_the_same_report_again_changes_nothing_and_another_one_is_refused_and_audited[sqlite]",),
    ),
    Mutant(
        "same-admission-twice",
        "The same admission again holds nothing more.",
        "gateway/storage/batch.py",
        "            return self._admit_again(token, row, admission)\n",
        "            token.held_nanos, token.changed = token.held_nanos + row.held_nanos, True\n"
        "            return self._admit_again(token, row, admission)\n",
        (f"{_LEDGER}::test_the_same_validation_again_gives_the_same_grant_and_holds_once[sqlite]",),
    ),
    Mutant(
        "another-report-taken",
        "Another report for a booked call is refused and audited.",
        "gateway/storage/batch.py",
        "            if row.report_digest != digest:\n",
        "            if False:\n",
        (f"{_LEDGER}::test_the_same_report_again_changes_nothing_and_another_one_is_refused_and_audited[sqlite]",),
    ),
    Mutant(
        "requests-without-key",
        "The database itself takes one row a call.",
        "gateway/storage/migrations/0001_ledger.py",
        "CREATE TABLE requests (\n    request_id TEXT NOT NULL PRIMARY KEY,\n",
        "CREATE TABLE requests (\n    request_id TEXT NOT NULL,\n",
        (f"{_GUARDS}::test_the_database_itself_refuses_a_second_row_of_a_call",),
    ),
    Mutant(
        "token-hash-not-unique",
        "The database itself takes one live token a secret.",
        "gateway/storage/migrations/0001_ledger.py",
        "CREATE UNIQUE INDEX client_tokens_token_hash",
        "CREATE INDEX client_tokens_token_hash",
        (f"{_GUARDS}::test_the_database_itself_refuses_a_second_live_token_with_one_secret",),
    ),
    Mutant(
        "tombstone-ignored",
        "A call that was withdrawn before it was admitted is never admitted.",
        "gateway/storage/batch.py",
        "        if admission.request_id in self._rows.tombstones:\n",
        "        if False:\n",
        (f"{_LEDGER}::test_a_call_withdrawn_before_it_was_admitted_is_never_admitted[sqlite]",),
    ),
    Mutant(
        "ids-not-serialized",
        "Two processes do not decide and withdraw one call at the same time.",
        "gateway/storage/postgres.py",
        "        if keys:\n            self.query(",
        "        if False:\n            self.query(",
        (f"{_POSTGRES}::test_a_call_withdrawn_while_another_process_admits_it_is_never_left_open",),
    ),
    Mutant(
        "expired-charged-twice",
        "A late report replaces what an expired call was charged.",
        "gateway/storage/batch.py",
        "        added = decided.cost_nanos - row.cost_nanos  #",
        "        added = decided.cost_nanos  #",
        (f"{_LEDGER}::test_an_expired_call_is_charged_its_hold_until_a_late_report_replaces_it[sqlite]",),
    ),
    Mutant(
        "expired-again",
        "A call that is no longer open does not expire.",
        "gateway/storage/ledger.py",
        "({marks}) AND state = 'admitted' ORDER BY request_id",
        "({marks}) ORDER BY request_id",
        (f"{_GUARDS}::test_a_call_that_was_reported_does_not_expire[sqlite]",),
    ),
    Mutant(
        "report-by-anyone",
        "A call is reported by the identity that opened it.",
        "gateway/storage/batch.py",
        "        if row.identity != report.identity:\n",
        "        if False:\n",
        (f"{_LEDGER}::test_a_report_by_another_identity_is_refused[sqlite]",),
    ),
)

ROUNDING = (
    Mutant(
        "half-up",
        "Half a nano-dollar goes to the even side.",
        "gateway/pricing.py",
        "quotient + (2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1))",
        "quotient + (2 * rest >= divisor)",
        (f"{_PRICING}::test_a_half_of_a_nano_dollar_goes_to_the_even_side",),
    ),
    Mutant(
        "truncated",
        "Costs are rounded, not cut.",
        "gateway/pricing.py",
        "quotient + (2 * rest > divisor or (2 * rest == divisor and quotient % 2 == 1))",
        "quotient",
        (f"{_PRICING}::test_a_half_of_a_nano_dollar_goes_to_the_even_side",),
    ),
    Mutant(
        "money-in-floats",
        "Costs are exact until they are rounded once.",
        "gateway/pricing.py",
        "    return _half_even(total, rates.scale * _PER_MILLION)\n",
        "    return round(total / (rates.scale * _PER_MILLION))\n",
        (f"{_PRICING}::test_a_cost_that_no_float_can_hold_is_exact",),
    ),
    Mutant(
        "bound-rounded-down",
        "The bound of a call's cost is rounded up.",
        "gateway/pricing.py",
        "        return -(-(self.fixed + self.per_output_token * output_limit) // self.divisor)\n",
        "        return (self.fixed + self.per_output_token * output_limit) // self.divisor\n",
        (f"{_PRICING}::test_the_bound_of_a_part_of_a_nano_dollar_is_a_whole_one",),
    ),
)

LIMITS = (
    Mutant(
        "period-reset-twice",
        "A budget starts anew once a period.",
        "gateway/limits.py",
        "    if started < start:\n        return start, 0\n",
        "    if started <= start:\n        return start, 0\n",
        (f"{_LIMITS}::test_a_spent_budget_starts_anew_with_the_period",),
    ),
    Mutant(
        "old-call-in-new-period",
        "A call of the period before does not use up the new one's budget.",
        "gateway/storage/batch.py",
        "        if token.period_start is None or row.admitted_at >= token.period_start:\n",
        "        if True:\n",
        (f"{_LIMITS}::test_what_was_admitted_in_an_older_period_settles_into_the_totals_only[sqlite]",),
    ),
    Mutant(
        "61-of-60-a-minute",
        "As many calls a minute pass as the limit says.",
        "gateway/storage/batch.py",
        "        token.window.window_requests += 1\n",
        "        token.window.window_requests += token.window.window_requests > 0 or token.window.open_calls > 1\n",
        (f"{_LIMITS}::test_two_processes_let_through_exactly_what_the_limit_says",),
    ),
    Mutant(
        "one-more-in-parallel",
        "As many calls are open at once as the limit says.",
        "gateway/limits.py",
        "    if most is None or window.open_calls < most:\n",
        "    if most is None or window.open_calls <= most:\n",
        ("tests/gateway/test_limits.py::test_tokens_a_minute_and_calls_at_once_are_limits_too",),
    ),
    Mutant(
        "ended-call-stays-open",
        "A call that ended makes room for another one.",
        "gateway/storage/batch.py",
        "            token.window.open_calls -= 1\n",
        "",
        (f"{_LIMITS}::test_a_call_that_ended_makes_room_for_another_one[sqlite]",),
    ),
)

LEASES = (
    Mutant(
        "lease-by-wall-clock",
        "Leases run by the monotonic clock.",
        "services/auth/sweeper.py",
        "        now = self._clock.monotonic()\n",
        "        now = self._clock.now().timestamp()\n",
        (f"{_GUARDS}::test_a_clock_that_jumps_frees_nothing_and_keeps_nothing",),
    ),
    Mutant(
        "lease-without-watching",
        "Only silence that this process has itself seen counts.",
        "gateway/leases.py",
        " else (beat, 0.0)\n",
        " else (beat, self._patience)\n",
        (
            f"{_SWEEPER}::test_a_restarted_observer_starts_to_wait_anew",
            f"{_SWEEPER}::test_calls_of_a_silent_proxy_are_charged_and_those_of_a_living_one_stay_open[sqlite]",
        ),
    ),
    Mutant(
        "lease-while-stopped",
        "Time in which the observer itself was stopped is not silence.",
        "gateway/leases.py",
        "min(monotonic - self._last_look, self._most_per_look)",
        "monotonic - self._last_look",
        (f"{_SWEEPER}::test_time_in_which_the_observer_itself_was_stopped_is_not_silence",),
    ),
    Mutant(
        "living-proxy-freed",
        "A proxy that beats keeps its holds.",
        "gateway/leases.py",
        "if known is not None and known[0] == beat else",
        "if known is not None else",
        (f"{_SWEEPER}::test_calls_of_a_silent_proxy_are_charged_and_those_of_a_living_one_stay_open[sqlite]",),
    ),
)

LOCKS = (
    Mutant(
        "locked-in-any-order",
        "PostgreSQL's rows of tokens are locked by id.",
        "gateway/storage/batch_rows.py",
        '        order = f" ORDER BY id{self._db.locking}" if self._db.locking else ""\n',
        "        order = self._db.locking\n",
        (f"{_POSTGRES}::test_tokens_are_locked_by_their_ids_wherever_their_rows_lie",),
    ),
    Mutant(
        "rows-not-locked",
        "PostgreSQL's rows are locked before they are changed.",
        "gateway/storage/postgres.py",
        '    locking = " FOR NO KEY UPDATE"',
        '    locking = ""',
        (f"{_POSTGRES}::test_two_processes_let_through_what_the_budget_holds_and_no_call_more",),
    ),
)

SYNCS = (
    Mutant(
        "sqlite-not-synced",
        "A commit in SQLite is on the disk before it is answered.",
        "gateway/storage/sqlite.py",
        '"synchronous": "full"',
        '"synchronous": "off"',
        (f"{_GUARDS}::test_a_commit_in_sqlite_is_synced_before_it_is_answered",),
    ),
    Mutant(
        "postgres-not-synced",
        "A commit in PostgreSQL is on the disk before it is answered.",
        "gateway/storage/postgres.py",
        "replace(current_setting('synchronous_commit'), 'off', 'on')",
        "current_setting('synchronous_commit')",
        (f"{_POSTGRES}::test_a_commit_waits_for_the_disk_whatever_the_server_says_by_default",),
    ),
)

REVOCATION = (
    Mutant(
        "tokens-cached",
        "Whether a token is switched on is read in the transaction that admits.",
        "gateway/storage/batch_rows.py",
        "        for row in rows:\n            inbox =",
        "        seen = BatchRows.__annotations__\n"
        "        for row in [(*row[:2], seen.setdefault(str(row[1]), row[2]), *row[3:]) for row in rows]:\n            inbox =",
        (f"{_LEDGER}::test_disabling_and_cutting_the_models_hold_from_the_next_call_on[sqlite]",),
    ),
    Mutant(
        "disabled-not-read",
        "A token that is switched off opens nothing.",
        "gateway/storage/batch_rows.py",
        "        bool(enabled),\n",
        "        True,\n",
        (f"{_LEDGER}::test_disabling_and_cutting_the_models_hold_from_the_next_call_on[sqlite]",),
    ),
    Mutant(
        "models-not-read",
        "A token opens its own models only.",
        "gateway/storage/batch_rows.py",
        "        expires_at,\n        allowed_models,\n",
        "        expires_at,\n        None,\n",
        (f"{_LEDGER}::test_disabling_and_cutting_the_models_hold_from_the_next_call_on[sqlite]",),
    ),
    Mutant(
        "expiry-not-read",
        "A token that has expired opens nothing.",
        "gateway/storage/batch_rows.py",
        "        expires_at,\n        allowed_models,\n",
        "        None,\n        allowed_models,\n",
        (f"{_GUARDS}::test_a_token_opens_nothing_from_the_moment_on_at_which_it_expires[sqlite]",),
    ),
    Mutant(
        "deleted-token-opens",
        "A deleted token opens nothing.",
        "gateway/storage/batch_rows.py",
        "            if token.deleted_at is None:\n",
        "            if True:\n",
        (f"{_GUARDS}::test_a_deleted_token_is_not_opened_by_a_report_on_one_of_its_calls",),
    ),
    Mutant(
        "old-secret-for-ever",
        "The secret before a rotation is dead when its grace time is over.",
        "gateway/storage/batch_rows.py",
        ' and (token.previous_valid_until or "") > self._now_text:',
        ":",
        (f"{_LIFE}::test_within_the_grace_time_both_secrets_work_and_after_it_only_the_new_one[sqlite]",),
    ),
    Mutant(
        "unknown-token-passes",
        "A token that nobody knows opens nothing.",
        "gateway/storage/batch.py",
        '            raise TokenUnknown("This token is not known here.")\n',
        "            return Admitted(1, 0, None)\n",
        (f"{_LEDGER}::test_unknown_tokens_are_unknown_whatever_they_look_like[sqlite]",),
    ),
    Mutant(
        "plain-text-kept",
        "The plain text of a token that was inserted by hand is in no file afterwards.",
        "gateway/storage/adoption.py",
        '    changes: dict[str, Any] = {"token": None, ',
        '    changes: dict[str, Any] = {"remark": secret, "token": None, ',
        ("tests/gateway/test_adoption.py::test_the_plain_text_is_in_no_file_afterwards[sqlite]",),
    ),
)

OF_LEDGER = (*BUDGET, *ONCE, *ROUNDING, *LIMITS, *LEASES, *LOCKS, *SYNCS, *REVOCATION)
