"""Work in processes that can be killed: time and memory limits for code that cannot be trusted."""

from offaxis.verifiers.workers.pool import Outcome, Pool

__all__ = ["Outcome", "Pool"]
