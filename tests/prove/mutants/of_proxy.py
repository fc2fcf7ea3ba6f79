"""The proxy's guards, broken: the outbox, failing closed, withdrawals, progress, secrets; and who may call auth."""

from __future__ import annotations

from tests.prove.mutants.mutant import Mutant

_OUTBOX = "tests/proxy/test_outbox.py"
_FILES = "tests/proxy/test_outbox_files.py"
_ADOPTION = "tests/proxy/test_adoption.py"
_CLIENT = "tests/proxy/test_auth_client.py"
_LOST = "tests/proxy/test_auth_lost_answers.py"
_CALLS = "tests/proxy/test_edge_calls.py"

OUTBOX = (
    Mutant(
        "dead-outbox-not-adopted",
        "What a dead proxy left in its outbox is charged.",
        "services/proxy/outbox.py",
        "        for group in await asyncio.to_thread(adopt, self._directory):\n",
        "        for group in list[Group]():\n",
        (f"{_ADOPTION}::test_what_was_settled_and_not_acknowledged_is_sent",),
    ),
    Mutant(
        "dropped-unacknowledged",
        "A record leaves the outbox when the ledger has acknowledged it, and not before.",
        "services/proxy/outbox.py",
        "        try:\n            results = await self._results(settlements)\n",
        "        self._finish([settlement.request_id for settlement in settlements])\n"
        "        try:\n            results = await self._results(settlements)\n",
        (f"{_OUTBOX}::test_a_ledger_that_answers_too_little_is_asked_again",),
    ),
    Mutant(
        "passing-fault-refuses",
        "A fault of the ledger's own refuses no report.",
        "services/proxy/outbox.py",
        "            elif result.error.code in _PASSING:\n",
        "            elif False:\n",
        (
            f"{_OUTBOX}::test_a_fault_of_the_ledgers_own_refuses_no_report",
            f"{_OUTBOX}::test_one_that_is_busy_is_sent_again_and_holds_up_no_other",
        ),
    ),
    Mutant(
        "opened-not-written",
        "A call is written down before it goes upstream.",
        "services/proxy/outbox.py",
        "            if self._journal.record(request_id, Kind.OPENED, body):\n",
        "            if True:\n",
        (
            f"{_ADOPTION}::test_a_call_that_was_only_opened_is_charged_its_hold",
            f"{_ADOPTION}::test_a_killed_process_loses_nothing_that_it_had_appended",
        ),
    ),
    Mutant(
        "log-lines-without-bound",
        "Lines that nobody takes are bounded and counted.",
        "gateway/process/log_sink.py",
        "        if self._queue.qsize() >= self._most_lines:\n",
        "        if False:\n",
        (
            "tests/gateway/test_log_sink.py::test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_it_loses_is_told_when_it_is_read",
        ),
    ),
    Mutant(
        "task-ends-with-its-round",
        "A task that loops for ever survives a fault of one round.",
        "gateway/process/tasks.py",
        "            await asyncio.sleep(AGAIN)\n",
        "            return\n",
        ("tests/gateway/test_log_sink.py::test_a_task_that_fails_begins_anew",),
    ),
    Mutant(
        "cut-outbox-taken-for-whole",
        "Of an outbox that was cut nothing is taken for not sent.",
        "services/proxy/adoption.py",
        " or group.damaged or (number_of(last.path), last.size) < (told.number, told.size):\n",
        ":\n",
        (f"{_ADOPTION}::test_of_an_outbox_that_was_cut_nothing_is_taken_for_not_sent",),
    ),
    Mutant(
        "opened-call-not-in-the-tally",
        "The tally says where the last call was opened.",
        "services/proxy/journal.py",
        "        if opens and self._tally is not None:\n",
        "        if False and self._tally is not None:\n",
        (f"{_ADOPTION}::test_of_an_outbox_that_was_cut_nothing_is_taken_for_not_sent",),
    ),
    Mutant(
        "unwritten-tally-believed",
        "A tally that cannot be written is none.",
        "services/proxy/outbox_tally.py",
        "                self._path.unlink(missing_ok=True)\n",
        "                pass\n",
        (f"{_ADOPTION}::test_without_room_for_the_tally_nothing_is_taken_for_not_sent",),
    ),
    Mutant(
        "rebooted-outbox-taken-for-whole",
        "After a reboot nothing is taken for not sent.",
        "services/proxy/outbox_tally.py",
        "    if magic != _MAGIC or not boot_id() or boot != boot_id().encode():\n",
        "    if magic != _MAGIC:\n",
        (f"{_ADOPTION}::test_after_a_reboot_or_without_a_tally_nothing_is_taken_for_not_sent",),
    ),
    Mutant(
        "unknown-call-not-disowned",
        "A call that stands as open and is not known to its proxy is disowned.",
        "services/proxy/auth_client.py",
        "            self._beat.disowned_request_ids.extend(unknown)\n",
        "            self._beat.disowned_request_ids.extend([])\n",
        (f"{_LOST}::test_a_call_that_stands_as_open_and_is_not_known_here_is_disowned",),
    ),
    Mutant(
        "known-call-disowned",
        "A call that is open or pending here is not disowned.",
        "services/proxy/auth_client.py",
        "heard.open_request_ids if not self._outbox.knows(request_id)]\n",
        "heard.open_request_ids]\n",
        (f"{_LOST}::test_a_call_that_stands_as_open_and_is_not_known_here_is_disowned",),
    ),
    Mutant(
        "unheard-admission-kept",
        "What auth committed and could not say is taken back.",
        "services/proxy/auth_client.py",
        "                waiting.lost |= not isinstance(error, _NOTHING_DONE)\n",
        "                waiting.lost |= not isinstance(error, (*_NOTHING_DONE, *_OUR_FAULT))\n",
        (f"{_LOST}::test_what_auth_committed_and_could_not_say_is_taken_back",),
    ),
    Mutant(
        "refused-settlement-keeps-hold",
        "A settlement whose content is refused is followed by a plain one that ends the hold.",
        "services/proxy/outbox.py",
        "            elif result.error.code == _INVALID and not call.replaced:\n",
        "            elif False:\n",
        (f"{_OUTBOX}::test_a_report_whose_content_the_ledger_refuses_is_moved_aside_and_its_call_ends_by_a_plain_one",),
    ),
    Mutant(
        "failed-sync-tried-again",
        "A file whose sync failed is given up with all that it alone holds.",
        "services/proxy/journal.py",
        "        self._unwritten.update(dict.fromkeys([*doubtful, *segment.live]))\n",
        "        self._unwritten.update(dict.fromkeys(list(doubtful)[:1]))\n",
        ("tests/proxy/test_outbox_disk.py::test_a_file_whose_sync_failed_is_given_up_with_all_that_it_alone_holds",),
    ),
    Mutant(
        "end-before-it-is-kept",
        "The end of an answer waits until its settlement outlives the process.",
        "services/proxy/ticket.py",
        "        await self.outbox.kept(self.request_id)\n",
        "        pass\n",
        ("tests/proxy/test_edge_calls.py::test_the_end_of_an_answer_waits_until_its_settlement_outlives_the_process",),
    ),
    Mutant(
        "made-though-not-written",
        "A call that cannot be written down is not made.",
        "services/proxy/chat.py",
        "            self._outbox.opened(ticket.request_id, ticket.token_key)\n",
        "            pass\n",
        ("tests/proxy/test_edge_refusals.py::test_an_outbox_that_cannot_be_written_stops_a_call_before_it_is_made",),
    ),
    Mutant(
        "checksum-not-looked-at",
        "A damaged record is told by its checksum.",
        "services/proxy/outbox_files.py",
        "    if kind is None or _checksum(payload) != checksum:\n",
        "    if kind is None:\n",
        (
            f"{_FILES}::test_a_flipped_byte_costs_its_own_record_and_no_other",
            f"{_ADOPTION}::test_a_flipped_byte_loses_at_most_its_own_record",
        ),
    ),
    Mutant(
        "outbox-not-synced",
        "Settlements in the outbox are brought to the disk.",
        "services/proxy/outbox_files.py",
        '        """Waits until everything is on the disk. Raises OSError."""\n        os.fdatasync(self.fd)\n',
        '        """Waits until everything is on the disk. Raises OSError."""\n',
        (f"{_FILES}::test_a_synced_file_is_on_the_disk_with_its_name",),
    ),
    Mutant(
        "settlements-not-synced",
        "A settlement has the outbox synced.",
        "services/proxy/journal.py",
        "        if kind is Kind.SETTLEMENT:\n            segment.unsynced.append(request_id)\n",
        "        if kind is Kind.ACKNOWLEDGED:\n            segment.unsynced.append(request_id)\n",
        (f"{_OUTBOX}::test_settlements_are_synced_in_a_thread_and_nothing_else_is",),
    ),
    Mutant(
        "files-not-locked",
        "Nobody adopts the files of a proxy that lives.",
        "services/proxy/outbox_files.py",
        "            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            mine, named",
        "            mine, named",
        (f"{_FILES}::test_a_file_in_use_is_not_given_away", f"{_ADOPTION}::test_files_in_use_are_left_alone"),
    ),
    Mutant(
        "last-event-first",
        "The settlement is on file before the caller has the end of a stream.",
        "services/proxy/relay.py",
        "                await ticket.kept()\n"
        '                await response.write_eof(target.provider.keys.redactor.redact(meter.last or b""))\n',
        '                await response.write_eof(target.provider.keys.redactor.redact(meter.last or b""))\n'
        "                await ticket.kept()\n",
        (f"{_CALLS}::test_the_settlement_is_on_file_before_the_last_byte_leaves",),
    ),
    Mutant(
        "progress-not-noted",
        "A stream notes once a second how far it is.",
        "services/proxy/relay.py",
        "meter.take_fresh()))\n                ticket.tick()\n",
        "meter.take_fresh()))\n",
        ("tests/proxy/test_edge_hangups.py::test_a_stream_notes_its_progress_once_a_second",),
    ),
    Mutant(
        "last-second-free",
        "A stream whose proxy died is charged its last second once more.",
        "services/proxy/adoption.py",
        "        output.count += last_second\n",
        "        output.count += 0\n",
        (f"{_ADOPTION}::test_a_stream_is_charged_its_progress_and_once_more_its_last_second",),
    ),
)

CLOSED = (
    Mutant(
        "auth-away-passes",
        "While auth is away no call passes.",
        "services/proxy/auth_client.py",
        """        \"\"\"The caller's second is over.\"\"\"\n        self._tell(waiting, _away())\n""",
        """        \"\"\"The caller's second is over.\"\"\"\n        self._tell(waiting, pb.Grant(token_id=1))\n""",
        (f"{_CLIENT}::test_auth_away_is_told_after_a_second_and_nothing_is_let_through",),
    ),
    Mutant(
        "auths-fault-passes",
        "A fault of auth lets no call pass.",
        "services/proxy/gate.py",
        "            return await self._auth.validate(request, arrived=arrived)\n",
        "            try:\n"
        "                return await self._auth.validate(request, arrived=arrived)\n"
        "            except __import__('gateway.errors', fromlist=['errors']).AuthUnavailable:\n"
        "                return pb.Grant(token_id=1)\n",
        ("tests/proxy/test_edge_refusals.py::test_an_auth_that_is_away_lets_nothing_through",),
    ),
    Mutant(
        "late-admission-not-withdrawn",
        "An admission that nobody waits for any more is taken back.",
        "services/proxy/auth_client.py",
        "        if waiting.request.request_id and (granted or waiting.in_flight or waiting.lost):\n",
        "        if False:\n",
        (
            f"{_CLIENT}::test_an_answer_that_is_lost_leaves_no_hold",
            f"{_CLIENT}::test_a_caller_who_leaves_while_he_is_judged_leaves_no_hold",
        ),
    ),
    Mutant(
        "settlements-stay-behind",
        "A token's pending settlements travel with its next validation.",
        "services/proxy/auth_client.py",
        "        settlements = self._outbox.pending({waiting.token_key for waiting in batch}, SETTLEMENTS_PER_BATCH)\n",
        "        settlements = self._outbox.pending(set(), SETTLEMENTS_PER_BATCH)\n",
        (f"{_CLIENT}::test_a_caller_who_makes_one_call_after_another_never_meets_his_own_hold",),
    ),
    Mutant(
        "tried-again-after-sending",
        "A call that went out whole is not made a second time.",
        "services/proxy/attempts.py",
        "            raise told from failure\n        if reply.status == 200:\n",
        "            return None, Failure(told, again=True, same_place=True)\n        if reply.status == 200:\n",
        (
            "tests/proxy/test_providers.py::test_nothing_is_tried_again_after_a_call_that_went_out_whole_or_an_answer_that_began",
        ),
    ),
    Mutant(
        "any-identity-may-call",
        "An identity reaches the methods of its row and no others.",
        "gateway/rpc/access.py",
        "        if name in rule.identities or rule.anyone or",
        "        if name or rule.anyone or",
        (
            "tests/gateway/test_rpc_access.py::test_an_internal_service_may_not_call_what_its_certificate_does_not_name",
            "tests/gateway/test_rpc_access.py::test_the_proxys_certificate_alone_opens_nothing_of_admin",
        ),
    ),
)

SECRETS = (
    Mutant(
        "clients-token-upstream",
        "The client's token does not go to the provider.",
        "services/proxy/chat.py",
        "            ticket = await self._admit(exchange, token, call, targets)\n",
        "            ticket = await self._admit(exchange, token, call, targets)\n"
        "            for provider in {target.provider for target in targets}:\n"
        "                own = type(provider).headers\n"
        "                provider.headers = lambda key, stream, own=own, provider=provider: (\n"
        "                    own(provider, key, stream=stream) | {'X-Client-Token': token}\n"
        "                )\n",
        (f"{_CALLS}::test_the_providers_key_goes_out_and_the_clients_token_does_not",),
    ),
    Mutant(
        "providers-key-echoed",
        "The provider's key does not come back to the caller.",
        "services/proxy/providers/redaction.py",
        "        return _without(data, self._spans(data))\n",
        "        return data\n",
        ("tests/proxy/test_edge_faults.py::test_the_providers_key_never_comes_back",),
    ),
    Mutant(
        "escaped-key-echoed",
        "Nor does it when its characters are escaped.",
        "services/proxy/providers/redaction.py",
        "        if _ESCAPED.search(data) is not None:\n",
        "        if False:\n",
        ("tests/proxy/test_redaction.py::test_a_key_goes_however_its_characters_are_escaped",),
    ),
    Mutant(
        "key-over-deltas",
        "Nor when it is cut over the deltas of a stream.",
        "services/proxy/providers/redaction.py",
        "        if texts:\n",
        "        if False:\n",
        ("tests/proxy/test_redaction.py::test_a_key_that_is_cut_over_deltas_never_comes_together_again",),
    ),
    Mutant(
        "key-over-a-known-beginning",
        "Nor when it stands over the end of what is the same in all events of a stream.",
        "services/proxy/providers/redaction.py",
        "len(self._head) - _GRAM if known",
        "len(self._head) if known",
        ("tests/proxy/test_redaction.py::test_a_key_goes_that_stands_over_the_end_of_how_all_events_begin",),
    ),
    Mutant(
        "pieces-of-keys-told",
        "A provider's error tells no piece of a key.",
        "services/proxy/providers/redaction.py",
        "                if end - start >= min(PIECE, len(secret)):\n",
        "                if end - start == len(secret):\n",
        ("tests/proxy/test_providers.py::test_no_piece_of_a_key_stays_in_a_text",),
    ),
    Mutant(
        "secret-on-file",
        "The outbox keeps nothing of a token.",
        "services/proxy/outbox.py",
        "        body = request_id.encode()\n        if self.writable:\n",
        "        body = request_id.encode() + token_key\n        if self.writable:\n",
        (f"{_OUTBOX}::test_no_token_and_nothing_of_one_is_on_file",),
    ),
)

OF_PROXY = (*OUTBOX, *CLOSED, *SECRETS)
