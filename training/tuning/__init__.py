"""Hyperparameter search with Optuna: one study per data set and kind of targets, shared by any number of processes.

A trial trains the network for a few epochs; its value is its best dev accuracy. Hyperband prunes poor trials. Trial 0
is the configured network, so the result is never worse than the start. The study is in a database: an SQLite file, or
any database URL. Optuna's heartbeats find the trials of killed processes and queue their parameters again.
"""

from training.tuning.search import tune

__all__ = ["tune"]
