"""The one folder that knows SQL: the database, its migrations, and a store for each thing that is kept in it.

`ledger` owns money: admissions, holds and settlements pass through its one door. `tokens`, `sessions`, `audit` and their like
serve the admin service. Rules stay in `gateway/*.py`; nothing here decides.
"""
