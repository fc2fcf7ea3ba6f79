"""The rows: what threatens the books, what is done about it here, and what is expected. The tests beside prove them."""

from __future__ import annotations

from dataclasses import dataclass

BOTH = ("sqlite", "postgres")


@dataclass(frozen=True)
class Row:
    """One promise. `done` and `expected` are of the full run.

    databases: on which it is run; PostgreSQL with two of auth and two of proxy.
    """

    threat: str
    done: str
    expected: str
    databases: tuple[str, ...] = BOTH


ROWS: dict[str, Row] = {
    "M1": Row(
        "The cap, under concurrency",
        "budget $1.00, calls of $0.01 whose hold is their cost, 500 at once over all proxies, 5 rounds",
        "99 to 100 pass, the rest is refused; calls upstream = calls that passed; I1 to I7",
    ),
    "M2": Row("The same, streamed", "as M1, with streams of 20 chunks in 2 s", "as M1"),
    "M3": Row(
        "Holds larger than costs",
        "hold $0.05, cost $0.01, 500 callers who honour Retry-After for 60 s",
        "I7 at every moment; 99 to 100 pass in the end; nobody is refused for good while money is left; holds 0",
    ),
    "M4": Row(
        "No max_tokens, or a hostile one",
        "absent; 0, -1, 1.5, '5', null, 10^12",
        "absent: 100 of 100 in a row pass on $1.00; hostile: 400, or the model's ceiling; never the whole budget held",
    ),
    "M5": Row(
        "A provider bills more than asked",
        "it reports three times the hold, 20 at once",
        "the whole cost recorded; the next call refused; overshoot at most the sum of (cost - hold) in flight; counted",
    ),
    "M6": Row(
        "Drift",
        "100,000 random usages through RecordUsage beside an oracle in Decimal; $0.15 a million x 7 tokens; 100 x $0.01",
        "difference 0 nano-dollars; $1.00 leaves exactly 0",
    ),
    "M7": Row(
        "Administrators edit while calls run",
        "200 calls open: lower the budget, disable, reset, delete, rename",
        "the new rule binds new calls within 1 s; open calls settle; the history stays; I1 to I6",
    ),
    "M8": Row(
        "Reports delivered again",
        "the same report 50 times at once, after a restart of auth, a day later; then the same id with another amount",
        "one row, charged once, the same answer; the other amount: an error, nothing changed, an audit record",
    ),
    "M9": Row(
        "A door without a meter",
        "20 calls on each route of the edge, unknown routes, an unpriced model",
        "rows = calls upstream on each route; unknown: 404, nothing upstream; unpriced: refused, unless priced at 0",
    ),
    "M10": Row("Failed calls", "the provider answers 400, 404, 500", "cost 0, no hold left, the row stays with its status"),
    "M11": Row(
        "The edge of expiry",
        "expires in 2 s, calls around it; zones, daylight saving, null, no zone",
        "right within 100 ms; null never expires; no zone is UTC, as documented",
    ),
    "M12": Row(
        "Hostile usage",
        "usage of -1, '12', 1.5, 10^18, null, parts missing",
        "spend never falls; charged at the hold or by what is plausible, marked estimated, counted; nothing crashes",
    ),
    "L15": Row(
        "Keys that differ only in case",
        "each checked key in other cases, with the long s and the Kelvin sign, beside the right one and alone; nested ones",
        "400 that names the key; nothing upstream; the books hold the other calls only",
    ),
    "C1": Row(
        "The proxy dies",
        "5,000 accepted calls, half of them streams, 20 at a time; 200 kill -9 of proxies, each started again",
        "rows = accepted: none lost, none twice; I1 to I6; estimated: at most those in flight; 10,000 records replayed in 5 s",
    ),
    "C2": Row(
        "auth dies",
        "the same load; 200 kill -9 of auths",
        "valid tokens see success or 503, never 401 or 403; nothing passes unmetered; I1 to I7",
    ),
    "C3": Row(
        "admin dies",
        "500 changes of tokens, 100 kill -9 of admin",
        "what was acknowledged is there, the rest whole or not at all; calls of models unaffected",
    ),
    "C4": Row(
        "Everything at once",
        "10 minutes of seeded kills and 5 s stops of all services and the database; the books read each second",
        "I1 to I7; no error left 10 s after it ends",
    ),
    "C5": Row(
        "auth is down at validation",
        "auth stopped; 200 calls with valid and unknown tokens",
        "100 % 503 with Retry-After and a JSON body, p99 1.2 s; nothing upstream; ready 503 within 5 s, live 200",
    ),
    "C6": Row(
        "auth hangs",
        "SIGSTOP for 30 s under 50 calls a second",
        "503 within 1.2 s; at most 32 MiB more; normal within 2 s of SIGCONT; holds of given-up validations are released",
    ),
    "C7": Row(
        "auth is down at recording",
        "300 streams of 10 s; auth killed at 3 s, back after 60 s",
        "300 whole answers; rows complete 10 s after its return; a burst at that moment does not pass the cap",
    ),
    "C8": Row(
        "A slow recovery",
        "auth away for 100 s under load",
        "first success within 2 s of its return; replay in batches, without crowding out new calls",
    ),
    "C9": Row(
        "The order of starts",
        "all 6 orders; the database away for the first 30 s",
        "no crash, never 401, ready 5 s after the last part",
    ),
    "C10": Row(
        "SQLite is locked",
        "another process holds BEGIN EXCLUSIVE for 10 s; 8 callers",
        "503 within 2 s, or success; no 500, no 401, no word of the lock to callers; I1 to I6",
        ("sqlite",),
    ),
    "C11": Row(
        "The disk is full",
        "the database's, then the outbox's, on a file system of 16 MiB that is filled under 20 calls a second",
        "new calls 503 before upstream; open ones finish; normal 10 s after there is space, without a restart; I1 to I6",
    ),
    "C12": Row(
        "The disk is read-only",
        "remounted read-only under load; and at the start",
        "as C11; at the start: exit code not 0 within 5 s, with one clear line",
    ),
    "C13": Row(
        "A torn outbox",
        "the last record cut at each byte; each byte of the last 3 flipped",
        "earlier records are replayed once; the bad tail is set aside and counted; no crash",
    ),
    "C14": Row(
        "The order of syncs",
        "strace of both services for 100 calls",
        "the row is synced before the first byte upstream; an outbox record goes only after its commit; FULL, commits on",
    ),
    "C15": Row(
        "PostgreSQL bounces",
        "20 immediate restarts; all its connections cut 50 times",
        "as C2; calls succeed again within 5 s",
        ("postgres",),
    ),
    "C17": Row(
        "The log cannot be written",
        "standard error of each service closed at the other end, on a full disk, a pipe that nobody reads; 20 calls a second",
        "no call fails; beats, sweeps and settlements go on; lost lines are counted; lines come again when they can",
    ),
    "C18": Row(
        "The outbox's disk fails, then the proxy dies",
        "EIO and ENOSPC on write and on fdatasync of the outbox for 10 s under calls, streams and refused calls, then kill -9",
        "answered calls are charged their usage, refused ones nothing; no call is lost or charged twice",
    ),
    "C19": Row(
        "The database is away or read-only for long",
        "70 s without the database, under streams of 90 s; calls before, during and after",
        "no live call expires, no stream is cut; new calls 503; normal 2 s after",
    ),
    "C20": Row(
        "The clock of one host is wrong",
        "auth 40 days ahead for 4 s while calls settle; sessions made by a clock 2 days ahead, or ended before a step back",
        "no period begins or ends by a jump; what ended stays ended; what is from the future is refused; all heal",
    ),
    "C21": Row(
        "The proxy dies between admission and sending",
        "40 calls, of which auth has admitted some and the proxy has not heard yet, kill -9 of it; the outbox whole, and cut",
        "whole: released when it is adopted, nothing charged; cut: charged the hold, marked estimated",
    ),
    "C22": Row(
        "The ledger is put back",
        "the database replaced by an older copy with calls open, while the proxies live on",
        "those calls end within 2 minutes by rule; the token is not locked; the books agree",
    ),
    "C16": Row(
        "The clock jumps",
        "-1 day, -1 h, +1 h, +1 day on one service at a time, 20 calls a second",
        "expiry by wall clock; leases and deadlines by the monotonic one: no stream cut, no live hold freed; CPU at most twice",
    ),
}
