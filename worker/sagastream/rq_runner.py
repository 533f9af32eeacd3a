"""The former address of the RQ worker.

It stays valid: command lines name `sagastream.rq_runner.SagaWorker` and `sagastream.rq_runner.Connection`, and jobs in
Redis name `sagastream.rq_runner.run_step`.
"""

from sagastream.rq_steps.connection import Connection
from sagastream.rq_steps.services import load_services
from sagastream.rq_steps.worker import SagaWorker, run_step

__all__ = ["Connection", "SagaWorker", "load_services", "run_step"]
