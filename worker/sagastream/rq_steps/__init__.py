"""Steps as RQ jobs. The only modules that import rq."""
