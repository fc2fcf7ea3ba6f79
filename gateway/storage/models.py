"""The tables as peewee models, for the queries that are not on the path of a call.

No model has a database of its own: a query is run with `.execute(db)`, so that one process can hold several databases. The
tables themselves, with all defaults, are made by `migrations/`.
"""

from __future__ import annotations

from peewee import AutoField, BigIntegerField, CompositeKey, DecimalField, IntegerField, Model, SmallIntegerField, TextField


class ClientToken(Model):
    """A client token. `token`, `max_amount` and `amount_spent` are the inbox for values written by hand."""

    id = AutoField()
    name = TextField(null=True)
    token_hash = TextField(null=True)
    hash_key_id = TextField(null=True)
    previous_token_hash = TextField(null=True)
    previous_valid_until = TextField(null=True)
    display_hint = TextField(default="")
    weak = SmallIntegerField(default=0)
    allowed_models = TextField(null=True)
    allowed_ips = TextField(null=True)
    enabled = SmallIntegerField(default=1)
    expires_at = TextField(null=True)
    customer = TextField(default="")
    remark = TextField(default="")
    created_at = TextField()
    last_used_at = TextField(null=True)
    deleted_at = TextField(null=True)
    version = IntegerField(default=1)
    max_amount_nanos = BigIntegerField(null=True)
    budget_mode = TextField(default="strict")
    budget_period = TextField(default="total")
    period_start = TextField(null=True)
    period_spent_nanos = BigIntegerField(default=0)
    held_nanos = BigIntegerField(default=0)
    total_spent_nanos = BigIntegerField(default=0)
    opening_nanos = BigIntegerField(default=0)
    prompt_tokens = BigIntegerField(default=0)
    completion_tokens = BigIntegerField(default=0)
    total_tokens = BigIntegerField(default=0)
    request_count = BigIntegerField(default=0)
    requests_per_minute = IntegerField(null=True)
    tokens_per_minute = BigIntegerField(null=True)
    max_parallel_requests = IntegerField(null=True)
    open_calls = IntegerField(default=0)
    window_start = TextField(null=True)
    window_requests = IntegerField(default=0)
    window_tokens = BigIntegerField(default=0)
    token = TextField(null=True)
    max_amount = DecimalField(null=True)
    amount_spent = DecimalField(null=True)

    class Meta:
        table_name = "client_tokens"


class Request(Model):
    """One admitted call."""

    request_id = TextField(primary_key=True)
    parent_request_id = TextField(null=True)
    token_id = BigIntegerField()
    identity = TextField()
    proxy_id = TextField(null=True)
    state = TextField()
    endpoint = TextField(default="")
    dialect = TextField(default="")
    stream = SmallIntegerField(default=0)
    request_model = TextField(default="")
    response_model = TextField(default="")
    provider = TextField(default="")
    candidates = TextField(default="[]")
    admitted_at = TextField()
    settled_at = TextField(null=True)
    period_start = TextField(null=True)
    held_nanos = BigIntegerField(default=0)
    granted_max_output_tokens = BigIntegerField(null=True)
    cost_nanos = BigIntegerField(default=0)
    price_id = BigIntegerField(null=True)
    input_tokens = BigIntegerField(default=0)
    cached_input_tokens = BigIntegerField(default=0)
    cache_write_tokens = BigIntegerField(default=0)
    output_tokens = BigIntegerField(default=0)
    reasoning_tokens = BigIntegerField(default=0)
    usage_json = TextField(default="")
    usage_source = TextField(null=True)
    status = IntegerField(default=0)
    error_code = TextField(default="")
    attempts_json = TextField(default="")
    ttft_ms = BigIntegerField(default=0)
    duration_ms = BigIntegerField(default=0)
    client_ip = TextField(default="")
    user_agent = TextField(default="")
    admission_digest = TextField(default="")
    report_digest = TextField(null=True)
    lease_beat = IntegerField(default=0)

    class Meta:
        table_name = "requests"


class Tombstone(Model):
    """A call that was reported as not made before it was admitted: its late admission is refused."""

    request_id = TextField(primary_key=True)
    identity = TextField()
    report_digest = TextField()
    created_at = TextField()

    class Meta:
        table_name = "tombstones"


class DailyTotal(Model):
    """What a token spent on a model on one UTC day. `pruned_cost_nanos` is the part whose rows are gone."""

    token_id = BigIntegerField()
    day = TextField()
    model = TextField()
    requests = BigIntegerField(default=0)
    input_tokens = BigIntegerField(default=0)
    output_tokens = BigIntegerField(default=0)
    cost_nanos = BigIntegerField(default=0)
    pruned_cost_nanos = BigIntegerField(default=0)

    class Meta:
        table_name = "daily_totals"
        primary_key = CompositeKey("token_id", "day", "model")


class Adjustment(Model):
    """Money that somebody added to or took from what a token has spent."""

    id = AutoField()
    token_id = BigIntegerField()
    amount_nanos = BigIntegerField()
    reason = TextField(default="")
    actor = TextField(default="")
    created_at = TextField()

    class Meta:
        table_name = "adjustments"


class Denial(Model):
    """Refusals, counted by token, reason and UTC minute."""

    token_id = BigIntegerField()
    reason = TextField()
    minute = TextField()
    count = BigIntegerField(default=0)
    last_ip = TextField(default="")
    last_request_id = TextField(default="")

    class Meta:
        table_name = "denials"
        primary_key = CompositeKey("token_id", "reason", "minute")


class Price(Model):
    """The rates of a model at a provider. Rows are never changed: a new price is a new row, the old one is retired."""

    id = AutoField()
    provider = TextField(default="")
    model = TextField()
    pattern = TextField()
    rates = TextField()
    context_window = BigIntegerField(null=True)
    max_output_tokens = BigIntegerField(null=True)
    valid_from = TextField(default="")
    source = TextField()
    created_at = TextField()
    retired_at = TextField(null=True)

    class Meta:
        table_name = "prices"


class Provider(Model):
    """A provider of the configuration, without its keys, so that auth and admin know the names it serves."""

    name = TextField(primary_key=True)
    kind = TextField()
    price_provider = TextField()
    models = TextField(default="")

    class Meta:
        table_name = "providers"


class Proxy(Model):
    """One life of one proxy process; `beat` grows while it lives."""

    id = TextField(primary_key=True)
    host = TextField(default="")
    beat = BigIntegerField(default=0)
    started_at = TextField()
    last_beat_at = TextField()

    class Meta:
        table_name = "proxies"


class Administrator(Model):
    """Somebody who manages tokens."""

    id = AutoField()
    username = TextField(unique=True)
    password_hash = TextField()
    role = TextField(default="admin")
    one_time = SmallIntegerField(default=0)
    one_time_expires_at = TextField(null=True)
    created_at = TextField()
    password_changed_at = TextField(null=True)

    class Meta:
        table_name = "administrators"


class Session(Model):
    """An administrator's session; only the hash of its secret is kept."""

    id = TextField(primary_key=True)
    administrator_id = BigIntegerField()
    token_hash = TextField(unique=True)
    kind = TextField()
    role = TextField()
    created_at = TextField()
    last_used_at = TextField()
    expires_at = TextField()
    revoked_at = TextField(null=True)
    client_ip = TextField(default="")
    user_agent = TextField(default="")

    class Meta:
        table_name = "sessions"


class LoginAttempt(Model):
    """One verification of a password; `refused`: whether a further try was refused after it and is audited already."""

    id = AutoField()
    username = TextField()
    at = TextField()
    succeeded = SmallIntegerField(default=0)
    refused = SmallIntegerField(default=0)

    class Meta:
        table_name = "login_attempts"


class RevokedIdentity(Model):
    """A name of which certificates are revoked."""

    name = TextField(primary_key=True)
    issued_until = TextField()
    revoked_at = TextField()
    actor = TextField()

    class Meta:
        table_name = "revoked_identities"


class Operation(Model):
    """A change that was asked for with an id, so that its repeat is known."""

    request_id = TextField(primary_key=True)
    rpc = TextField()
    digest = TextField()
    token_id = BigIntegerField()
    created_at = TextField()

    class Meta:
        table_name = "operations"


class AuditRecord(Model):
    """Who did what, when, from where."""

    id = AutoField()
    at = TextField()
    actor = TextField()
    action = TextField()
    subject = TextField(default="")
    before_json = TextField(default="")
    after_json = TextField(default="")
    client_ip = TextField(default="")
    request_id = TextField(default="")

    class Meta:
        table_name = "audit"


class Meta(Model):
    """Facts about the installation, such as the token key's fingerprint and the revision of the prices."""

    key = TextField(primary_key=True)
    value = TextField()

    class Meta:
        table_name = "meta"


ALL: tuple[type[Model], ...] = (
    ClientToken,
    Request,
    Tombstone,
    DailyTotal,
    Adjustment,
    Denial,
    Price,
    Provider,
    Proxy,
    Administrator,
    Session,
    LoginAttempt,
    RevokedIdentity,
    Operation,
    AuditRecord,
    Meta,
)
"""Every table that has a model."""
