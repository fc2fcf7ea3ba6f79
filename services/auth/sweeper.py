"""What auth does on its own, every few seconds: ends the calls of proxies that are gone, writes what was counted, prunes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Final

from gateway.clock import Clock, to_text
from gateway.errors import DatabaseUnavailable
from gateway.leases import LeaseWatch
from gateway.process.logs import get_logger
from gateway.process.tasks import keep_looking
from gateway.storage.database import Database
from gateway.storage.ledger import Ledger
from gateway.storage.operations import forget_old
from services.auth.denials import DenialLog
from services.auth.metrics import AuthMetrics
from services.auth.pruning import Pruner
from services.auth.wire import PROXY_LEASE_SECONDS, SERVICE_LEASE_SECONDS

INTERVAL: Final = 5.0  # seconds between two looks; proxies beat as often
_FORGET_EVERY: Final = 720  # looks, which is an hour
_KEEP_TOMBSTONES: Final = timedelta(days=8)  # an admission with an id of more than seven days is refused anyway
_KEEP_PROXIES: Final = timedelta(days=1)

_log = get_logger(__name__)


class Sweeper:
    """A thread that looks every five seconds. Any number of auth processes may sweep one database.

    retention_days: how long rows of calls and counts of refusals are kept, and single refusals if that is shorter than their
    own time (`pruning.REFUSAL_DAYS`); 0: rows of calls and counts for good.
    """

    def __init__(
        self,
        *,
        db: Database,
        ledger: Ledger,
        denials: DenialLog,
        clock: Clock,
        metrics: AuthMetrics,
        retention_days: int = 0,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._denials = denials
        self._clock = clock
        self._proxies = LeaseWatch(patience=PROXY_LEASE_SECONDS, most_per_look=2 * INTERVAL)
        self._leases = LeaseWatch(patience=SERVICE_LEASE_SECONDS, most_per_look=2 * INTERVAL)
        self._metrics = metrics
        self._looks = 0
        self._stop = threading.Event()
        self._pruner = Pruner(db=db, ledger=ledger, clock=clock, metrics=metrics, days=retention_days, stop=self._stop)
        looks = {"every": INTERVAL, "stop": self._stop}
        self._thread = threading.Thread(target=keep_looking, args=(self.look,), kwargs=looks, name="sweeper", daemon=True)

    def __enter__(self) -> Sweeper:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._try(lambda: self._denials.flush(self._ledger))

    def look(self) -> None:
        """One look, as the thread takes it every five seconds."""
        swept = self._try(self._sweep)
        swept &= self._try(lambda: self._denials.flush(self._ledger))
        swept &= self._try(lambda: self._metrics.look(self._db))
        for event, count in self._ledger.take_events().items():
            self._metrics.event(event, count)
            _log.warning("ledger event", kind=event, count=count)
        if self._looks % _FORGET_EVERY == 0:
            swept &= self._try(self._forget)
        swept &= self._try(self._pruner.look)
        if swept:
            self._metrics.swept(self._clock.now().timestamp())
        self._looks += 1

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        expired = 0
        for proxy_id in self._proxies.look(self._ledger.beats(), now):
            expired += self._ledger.expire(proxy_id=proxy_id)
        leases = {lease.request_id: lease.beat for lease in self._ledger.leases()}
        gone = self._leases.look(leases, now)
        if gone:
            expired += self._ledger.expire(request_ids=gone)
        if expired:
            self._metrics.expired(expired)
            _log.warning("charged calls that nobody reported at their hold", calls=expired)

    def _forget(self) -> None:
        now = self._clock.now()
        self._ledger.forget(tombstones_before=to_text(now - _KEEP_TOMBSTONES), proxies_before=to_text(now - _KEEP_PROXIES))
        forget_old(self._db, now)

    def _try(self, work: Callable[[], None]) -> bool:
        """Whether it could be done."""
        try:
            work()
        except DatabaseUnavailable as error:
            _log.info("the sweeper waits for the database", fault=error.message)
        except Exception:
            _log.exception("the sweeper failed and goes on")
        else:
            return True
        return False
